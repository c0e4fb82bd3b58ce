"""The text of a corpus as a tensorflow-datasets `array_record` dataset, without TensorFlow.

Layout of the directory: `plan.npz` (what becomes of each document), `tfds/moejax_text/1.0.0/`
(the dataset, with splits train and validation; absent where the corpus already is one) and
`manifest.json`.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moejax.data.cache import Progress
from moejax.data.corpora.contract import Corpus
from moejax.data.corpora.tfds_dataset import open_builder, quiet, read_split
from moejax.data.plan import LEFT_OUT, SPLITS, Plan

_FEATURES = ("id", "text", "domain", "language")
Examples = Callable[[int], Iterator[tuple[int, dict[str, Any]]]]
DATASET = Path("tfds", "moejax_text", "1.0.0")


def write_store(directory: Path, corpus: Corpus, plan: Plan, progress: Progress) -> dict[str, Any]:
    """Fills an empty directory; returns the part of the manifest that describes the text."""
    np.savez(
        directory / "plan.npz",
        format_version=np.int64(1),
        split=plan.split,
        domain=plan.domain,
        language=plan.language,
    )
    if corpus.stored:
        _build_dataset(directory / "tfds", corpus, plan, progress)
    return {
        "domains": list(plan.domains),
        "languages": list(plan.languages),
        "documents": plan.table,
        "sources": corpus.sources(),
        "stored": corpus.stored,
    }


def read_store(directory: Path, corpus: Corpus, split: str) -> Iterator[tuple[str, int, int]]:
    """Yields (text, domain id, language id) of each document of a split, in stored order.

    Raises:
      ConfigError: a shard is missing or damaged.
    """
    number = SPLITS.index(split)
    with np.load(directory / "plan.npz", allow_pickle=False) as saved:
        split_of, domain_of, language_of = saved["split"], saved["domain"], saved["language"]
    chosen = np.flatnonzero(split_of == number)
    labels = zip(domain_of[chosen].tolist(), language_of[chosen].tolist(), strict=True)
    if corpus.stored:
        examples = read_split(open_builder(directory / DATASET), split)
        texts = (example["text"].decode() for _, example, _ in examples)
    else:
        documents = zip(split_of.tolist(), corpus.documents(), strict=True)
        texts = (document.text for which, document in documents if which == number)
    for text, (domain, language) in zip(texts, labels, strict=True):
        yield text, domain, language


def _build_dataset(data_dir: Path, corpus: Corpus, plan: Plan, progress: Progress) -> None:
    total = int((plan.split != LEFT_OUT).sum())
    console = sys.stdout

    def examples(split: int) -> Iterator[tuple[int, dict[str, Any]]]:
        done = plan.documents(0) if split else 0
        pairs = zip(plan.split.tolist(), corpus.documents(), strict=True)
        for index, (which, document) in enumerate(pairs):
            if which == split:
                yield index, {key: getattr(document, key) for key in _FEATURES}
                done += 1
                with contextlib.redirect_stdout(console):
                    progress("storing text", done, total)

    with quiet():
        # The default format, tfrecord, needs TensorFlow, and parquet silently loses examples.
        builder = _builder_class()(
            examples=examples, data_dir=str(data_dir), file_format="array_record"
        )
        builder.download_and_prepare()


@functools.cache
def _builder_class() -> Any:
    """Returns the class of the dataset; made when first needed, because tfds is imported then."""
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():

        class MoejaxText(tfds.core.GeneratorBasedBuilder):
            """Documents of a corpus, split as planned."""

            VERSION = tfds.core.Version(DATASET.name)

            def __init__(self, *, examples: Examples, **keywords: Any) -> None:
                self._examples = examples
                super().__init__(**keywords)

            def _info(self) -> Any:
                # Labels are plain text too: a ClassLabel cannot hold every name of a .jsonl.
                # `dataset_info_from_configs` would look for metadata files beside this module.
                return tfds.core.DatasetInfo(
                    builder=self,
                    description="Text prepared by moejax.",
                    features=tfds.features.FeaturesDict(
                        {name: tfds.features.Text() for name in _FEATURES}
                    ),
                    disable_shuffling=True,  # keep the corpus' order
                )

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                return {name: self._generate_examples(i) for i, name in enumerate(SPLITS)}

            def _generate_examples(self, split: int) -> Iterator[tuple[int, dict[str, Any]]]:
                return self._examples(split)

    return MoejaxText
