"""`tfds:NAME` or `tfds:DIRECTORY`: one split of a prepared tensorflow-datasets dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from moejax.config import ConfigError, knob, nearest
from moejax.data.corpora.tfds_dataset import find_builder, read_split
from moejax.data.evaluation.columns import Columns
from moejax.data.evaluation.contract import EVALUATIONS, Part
from moejax.data.evaluation.documents import EvaluationDocument


@EVALUATIONS.register("tfds")
@dataclasses.dataclass(frozen=True)
class TfdsExamples:
    """Examples with a feature of text and, if you like, features of labels.

    Without a label, a document's domain is the dataset's name. A class label becomes its name.
    """

    argument: str
    split: str = knob("test", doc="Which split.")
    text: str = knob("", doc="Feature with the text; '' = `text`.")
    label: str = knob("", doc="Feature with the domain; '' = `domain` where there is one.")
    language: str = knob("", doc="Likewise with the language.")
    difficulty: str = knob("", doc="Likewise with the difficulty, a number.")
    parallel: str = knob("", doc="Likewise with the id of the aligned unit, a whole number.")

    argument_name: ClassVar[str] = "NAME"

    def parts(self) -> list[Part]:
        builder = find_builder(self.argument)
        info = builder.info
        if self.split not in info.splits:
            raise ConfigError(
                f"tfds:{self.argument}: no split {self.split!r}{nearest(self.split, info.splits)}; "
                f"it has: {', '.join(info.splits)} (option split=NAME)"
            )

        def describe() -> dict[str, Any]:
            licence = info.redistribution_info.license or "see the dataset"
            return {"package": info.name, "version": str(info.version), "licence": licence}

        def files() -> list[Path]:
            shards = [Path(path) for path in info.splits[self.split].filepaths]
            return [*shards, *sorted(Path(builder.data_dir).glob("*.json"))]  # names of classes

        where = f"tfds:{self.argument}"
        return [Part(where, describe, lambda: self._read(builder), files=files)]

    def _read(self, builder: Any) -> Iterator[EvaluationDocument]:
        columns = Columns(self.text, self.label, self.language, self.difficulty, self.parallel)
        features = builder.info.features
        for _, example, where in read_split(builder, self.split):
            record = {key: _plain(features[key], value) for key, value in example.items()}
            yield columns.document(record, where, builder.info.name)


def _plain(feature: Any, value: Any) -> Any:
    """Returns a value as a table has it: names of classes, Python's own numbers."""
    if hasattr(feature, "int2str"):
        return str(feature.int2str(int(value)))
    return value.item() if isinstance(value, np.generic) else value
