import subprocess
import sys

CODE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jax", "jaxlib", "flax", "optax", "tensorflow", "torch"):
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
import importlib, pkgutil
import moejax.config
for module in pkgutil.iter_modules(moejax.config.__path__):
    importlib.import_module("moejax.config." + module.name)
print(moejax.__version__)
"""


def test_the_config_floor_needs_no_jax():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0.1.0"
