"""Where text comes from: `embedded`, `files:PATTERN`, `tfds:NAME`."""

from moejax.data.corpora import embedded, files, tfds_dataset
from moejax.data.corpora.contract import CORPORA, Corpus, open_corpus, parse_corpus

__all__ = [
    "CORPORA",
    "Corpus",
    "embedded",
    "files",
    "open_corpus",
    "parse_corpus",
    "tfds_dataset",
]
