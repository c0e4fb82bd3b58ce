"""Where text comes from: `embedded`, `files:PATTERN`, `tfds:NAME`, `labelled:SPEC`."""

from moejax.data.corpora import embedded, files, labelled, tfds_dataset
from moejax.data.corpora.contract import CORPORA, Corpus, open_corpus, parse_corpus

__all__ = [
    "CORPORA",
    "Corpus",
    "embedded",
    "files",
    "labelled",
    "open_corpus",
    "parse_corpus",
    "tfds_dataset",
]
