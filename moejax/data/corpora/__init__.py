"""Where text comes from: `embedded`, `files:PATTERN`, `tfds:NAME`, `labelled:SPEC`, `task:SPEC`."""

from moejax.data.corpora import embedded, files, labelled, task, tfds_dataset
from moejax.data.corpora.contract import CORPORA, Corpus, open_corpus, parse_corpus

__all__ = [
    "CORPORA",
    "Corpus",
    "embedded",
    "files",
    "labelled",
    "open_corpus",
    "parse_corpus",
    "task",
    "tfds_dataset",
]
