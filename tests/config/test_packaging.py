"""requirements.txt, requirements.lock and pyproject.toml agree with the code and each other."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parent.parent.parent
# Imported only when the user asks for it: extras.
OPTIONAL = {"lm_eval", "reasoning_gym", "submitit", "tokamax", "wandb", "yaml"}
# A dependency that nothing imports by name, and why it is there.
INDIRECT = {"importlib-resources": "tensorflow-datasets imports it without declaring it"}


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements():
    lines = (REPOSITORY / "requirements.txt").read_text().splitlines()
    lines = [line.split("#")[0].strip() for line in lines]
    return {normal(Requirement(line).name): line for line in lines if line}


def locked():
    lines = (REPOSITORY / "requirements.lock").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {normal(name): version for name, version in pins}


def third_party_imports():
    found = set()
    for path in (REPOSITORY / "moejax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"moejax"}


def test_every_import_is_a_declared_dependency():
    owners = metadata.packages_distributions()
    missing = {
        name
        for name in third_party_imports() - OPTIONAL
        if not {normal(owner) for owner in owners.get(name, ())} & set(requirements())
    }
    assert missing == set()


def test_every_dependency_is_named_in_the_code():
    owners = metadata.packages_distributions()
    modules = {}
    for module, names in owners.items():
        for name in names:
            modules.setdefault(normal(name), set()).add(module)
    text = "\n".join(path.read_text() for path in (REPOSITORY / "moejax").rglob("*.py"))
    unused = {
        name
        for name in requirements()
        if not any(re.search(rf"\b{re.escape(module)}\b", text) for module in modules[name])
    }
    assert unused == set(INDIRECT)


def test_the_lock_pins_every_dependency_within_its_range():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for line in [*requirements().values(), *extras["optional-dependencies"]["dev"]]:
        wanted = Requirement(line)
        version = locked()[normal(wanted.name)]
        assert wanted.specifier.contains(version), f"{line} but the lock has {version}"


def test_what_the_lock_pins_needs_nothing_beside_it():
    pins = locked()
    for name in pins:
        for wanted in map(Requirement, metadata.requires(name) or ()):
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                assert normal(wanted.name) in pins, f"{name} needs {wanted}"


def test_no_tensorflow_and_no_torch():
    assert {"tensorflow", "torch", "tensorflow-cpu", "moejax"} & set(locked()) == set()


def test_all_extras_are_there():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) == {
        *("dev", "multilingual", "eval", "hf", "lm-eval", "bench"),
        *("tpu", "gpu", "gcs", "slurm", "wandb"),
    }
