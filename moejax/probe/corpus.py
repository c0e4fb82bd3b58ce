"""Which text a run is probed with: `--corpus=SPEC` as labelled documents."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

from moejax.config import ConfigError, nearest
from moejax.data import CORPORA, DataConfig, Dataset
from moejax.data.corpora import open_corpus
from moejax.data.corpora.contract import parse_corpus
from moejax.data.corpora.labelled import LabelledCorpus
from moejax.data.documents import Document
from moejax.data.evaluation import EVALUATIONS, EvaluationDocument, open_evaluation
from moejax.probe.opened import OpenedRun

VALIDATION = "validation"
"""The run's own validation windows, as the trainer evaluates them."""


@dataclasses.dataclass(frozen=True)
class Text:
    """A labelled text.

    Attributes:
      name: fit for a folder.
      spec: what it was asked for by.
      part: which part of it the documents are, in words.
      documents: yields them, in the same order every time; None for `validation`, which has
        windows instead.
      sources: returns one JSON row per source.
    """

    name: str
    spec: str
    part: str
    documents: Callable[[], Iterator[EvaluationDocument]] | None
    sources: Callable[[], list[dict[str, Any]]]


def open_text(run: OpenedRun, spec: str) -> Text:
    """The text that a spec names: nothing is read yet, but of the run's own corpus.

    `validation`; an evaluation set of `moejax.data.evaluation`; or a corpus of `moejax.data`, of
    which only held-out documents are used where they are known: of the run's own corpus those that
    it did not train on, of any other one those of its split `validation`, if it has one. What is
    both (`files`, `tfds`) is an evaluation set, because that has more labels; but plain text files
    are a corpus: they have none.

    Raises:
      ConfigError: no such set or corpus, or it needs another argument.
    """
    kind = re.split(r"[:?]", spec, maxsplit=1)[0]
    data = run.experiment.data
    if spec == VALIDATION:
        dataset = run.dataset
        part = "the validation windows that the trainer evaluates"
        return Text(VALIDATION, spec, part, None, lambda: list(dataset.manifest["sources"]))
    if spec == data.corpus:
        dataset = run.dataset
        return Text(
            _name(spec),
            spec,
            "documents that the run was not trained on",
            with_all_labels(data) or (lambda: _held_out(dataset)),
            lambda: list(dataset.manifest["sources"]),
        )
    if kind in EVALUATIONS and not (kind in CORPORA and spec.endswith(".txt")):
        found = open_evaluation(spec)
        return Text(found.name, spec, "the set", found.documents, found.sources)
    if kind not in CORPORA:
        known = list(dict.fromkeys([VALIDATION, *EVALUATIONS.names(), *CORPORA.names()]))
        raise ConfigError(
            f"--corpus={spec!r}: unknown text{nearest(kind, known)}; known: {', '.join(known)}"
        )
    parse_corpus(spec, "--corpus")
    corpus = open_corpus(dataclasses.replace(data, corpus=spec))
    return Text(
        _name(spec),
        spec,
        "its split validation, or all documents where it has none",
        lambda: _validation_first(corpus.documents),
        corpus.sources,
    )


def _name(spec: str) -> str:
    """As evaluation sets are named: the kind, and a hash where that does not say everything."""
    kind = spec.partition(":")[0]
    return kind if spec == kind else f"{kind}-{hashlib.sha256(spec.encode()).hexdigest()[:8]}"


def with_all_labels(data: DataConfig) -> Callable[[], Iterator[EvaluationDocument]] | None:
    """Held-out documents of a labelled corpus; None if it is another, or in part."""
    corpus: object = open_corpus(data)
    if isinstance(corpus, LabelledCorpus) and not data.limit_bytes and not data.domains:
        return corpus.held_out
    return None


def _held_out(dataset: Dataset) -> Iterator[EvaluationDocument]:
    """The documents of the validation split; a tokenizer is lossless, so tokens are text."""
    split = dataset.validation
    begins = [0, *split.doc_ends[:-1].tolist()]
    for index, (begin, end) in enumerate(zip(begins, split.doc_ends.tolist(), strict=True)):
        yield EvaluationDocument(
            dataset.tokenizer.decode(split.tokens[begin : end - 1]),  # the last is EOS
            dataset.domains[split.doc_domain[index]],
            dataset.languages[split.doc_language[index]],
        )


def _validation_first(
    read: Callable[[], Iterator[Document]],
) -> Iterator[EvaluationDocument]:
    """Documents that the corpus itself declares for validation; all if it declares none."""
    held = (document for document in read() if document.split == "validation")
    first = next(held, None)
    chosen = read() if first is None else itertools.chain([first], held)
    for document in chosen:
        yield EvaluationDocument(document.text, document.domain, document.language)
