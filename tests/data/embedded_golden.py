"""What the embedded corpus is for the locked versions; run this file to record it anew."""

import importlib.metadata
import tempfile
from pathlib import Path

from moejax.config import write_json
from moejax.data import DataConfig, prepare
from moejax.data.corpora.embedded import DOMAINS, EmbeddedCorpus
from moejax.data.plan import make_plan

FILE = Path(__file__).with_suffix(".json")


def versions():
    sources = [source for _, of_domain in DOMAINS.values() for source in of_domain]
    return {s.distribution: importlib.metadata.version(s.distribution) for s in sources}


def observe(cache):
    """Documents and split of the whole; every file of a small extract: ids, classes, counts."""
    small = {"limit_bytes": 30_000, "cache_dir": str(cache), "seq_len": 32}
    as_bytes = prepare(DataConfig(**small))
    as_bpe = prepare(DataConfig(**small, tokenizer="bpe", bpe_vocab_size=512))
    return {
        "versions": versions(),
        "revision": EmbeddedCorpus.revision,
        "documents": make_plan(EmbeddedCorpus(), DataConfig()).table,
        "manifest_hash": {"bytes": as_bytes.manifest_hash, "bpe": as_bpe.manifest_hash},
        "tokenizer_hash": {"bytes": as_bytes.tokenizer_hash, "bpe": as_bpe.tokenizer_hash},
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write_json(FILE, observe(folder))
    print(f"recorded {FILE}")
