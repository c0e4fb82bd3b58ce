"""Small datasets, prepared once for each worker."""

import pytest
from data_samples import files_config, records, write_jsonl

from moejax.data import DataConfig, prepare


@pytest.fixture(scope="session")
def small_config(tmp_path_factory):
    """The embedded corpus, 30 kB of each domain, as bytes."""
    cache = tmp_path_factory.mktemp("data_cache")
    return DataConfig(limit_bytes=30_000, cache_dir=str(cache), seq_len=32)


@pytest.fixture(scope="session")
def small(small_config):
    return prepare(small_config)


@pytest.fixture(scope="session")
def story(tmp_path_factory):
    """Two domains of documents, many of them shorter than a window of 64, as BPE tokens."""
    folder = tmp_path_factory.mktemp("story")
    write_jsonl(folder / "a.jsonl", records(12, "tale") + records(12, "song"))
    return prepare(
        files_config(folder, tokenizer="bpe", bpe_vocab_size=300, validation_fraction=0.25)
    )
