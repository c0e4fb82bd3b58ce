"""The data floor runs where jax does not exist, and never asks for TensorFlow or torch."""

import subprocess
import sys
from pathlib import Path

from data_samples import records, write_jsonl

REPOSITORY = Path(__file__).resolve().parent.parent.parent
CODE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jax", "jaxlib", "flax", "optax", "orbax"):
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
from moejax.data import DataConfig, EvalStream, TrainStream, prepare

config = DataConfig(
    corpus=f"files:{sys.argv[1]}/*.jsonl", cache_dir=sys.argv[1], seq_len=16, tokenizer="bpe"
)
dataset = prepare(config)
stream = TrainStream(dataset, seed=0, batch_size=2, seq_len=16)
assert next(stream.iterate())[1]["tokens"].shape == (2, 16)
assert len(list(EvalStream(dataset, batch_size=2, seq_len=16).batches()))
assert not {"tensorflow", "torch"} & set(sys.modules)
print(dataset.train.num_documents)
"""


def test_everything_works_without_jax(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", records(20))
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "19\n"
