"""Any prepared tensorflow-datasets dataset in `array_record` format: `tfds:NAME` or a directory.

TensorFlow is not needed to read one. Where the dataset has a split `validation` it is used;
else documents of `train` are split as everywhere.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from absl import logging
from array_record.python.array_record_module import ArrayRecordReader

from moejax.config import ConfigError, nearest
from moejax.data.corpora.contract import CORPORA
from moejax.data.documents import Document, decode, read_bytes

if TYPE_CHECKING:
    from moejax.data.knobs import DataConfig


@CORPORA.register("tfds")
@dataclasses.dataclass(frozen=True)
class TfdsCorpus:
    """A dataset by registered name ("lm1b", "mine:1.0.0") or by the directory it lies in."""

    dataset: str
    text_field: str = "text"
    domain_field: str = "domain"
    language_field: str = "language"

    argument_name: ClassVar[str] = "NAME"
    stored: ClassVar[bool] = False

    @classmethod
    def from_data(cls, config: DataConfig, argument: str) -> TfdsCorpus:
        """Takes the name; the dataset is opened when it is read."""
        return cls(argument, config.text_field, config.domain_field, config.language_field)

    def fingerprint(self) -> dict[str, Any]:
        settings = dataclasses.asdict(self)
        del settings["dataset"]  # the same dataset in another folder is the same corpus
        return {"settings": settings, "sources": self.sources()}

    def sources(self) -> list[dict[str, Any]]:
        info = find_builder(self.dataset).info
        rows = []
        for split in self._splits():
            digest, size = hashlib.sha256(), 0
            for file in sorted(map(str, info.splits[split].filepaths)):
                raw = read_bytes(file)
                digest.update(raw)
                size += len(raw)
            rows.append(
                {
                    "domain": info.name,
                    "dataset": f"{info.full_name}:{split}",
                    "licence": info.redistribution_info.license or "see the dataset",
                    "bytes": size,
                    "sha256": digest.hexdigest(),
                }
            )
        return rows

    def documents(self) -> Iterator[Document]:
        builder = find_builder(self.dataset)
        features = builder.info.features
        if self.text_field not in features:
            raise ConfigError(
                f"tfds:{self.dataset}: no feature {self.text_field!r}"
                f"{nearest(self.text_field, features)}; it has: {', '.join(features)} "
                "(config.data.text_field)"
            )
        splits = self._splits()
        for split in splits:
            declared = split if len(splits) > 1 else ""
            for index, example, where in read_split(builder, split):
                yield Document(
                    f"{split}#{index}",
                    _text(example[self.text_field], where),
                    _label(features, example, self.domain_field, builder.info.name, where),
                    _label(features, example, self.language_field, "und", where),
                    where,
                    declared,
                )

    def _splits(self) -> tuple[str, ...]:
        splits = find_builder(self.dataset).info.splits
        if "train" not in splits:
            raise ConfigError(f"tfds:{self.dataset}: no split 'train'; it has: {', '.join(splits)}")
        return ("train", "validation") if "validation" in splits else ("train",)


def read_split(builder: Any, split: str) -> Iterator[tuple[int, dict[str, Any], str]]:
    """Yields (index, example, shard and record) of a split, in stored order.

    Raises:
      ConfigError: a shard is missing, cut short, damaged, or has too few records.
    """
    info = builder.info.splits[split]
    files = [str(path) for path in info.filepaths]
    ends = np.cumsum(info.shard_lengths).tolist()

    def where(index: int) -> str:
        shard = min(bisect.bisect_right(ends, index), len(files) - 1)
        return f"{files[shard]}: record {index - (ends[shard - 1] if shard else 0)}"

    for file, wanted in zip(files, info.shard_lengths, strict=True):
        # A shard cut at a multiple of 64 KiB opens without complaint, claims to hold nothing, and
        # yields empty records for whatever index is asked.
        found = ArrayRecordReader(file).num_records()
        if found != wanted:
            raise ConfigError(
                f"{file}: truncated or damaged shard: {found} of {wanted} records can be read; "
                "prepare the dataset again"
            )
    index = 0
    try:
        source = builder.as_data_source(split=split)
        for index in range(info.num_examples):
            yield index, source[index], where(index)
    except (RuntimeError, IndexError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{where(index)}: truncated or damaged shard ({reason})") from error


@contextlib.contextmanager
def quiet() -> Iterator[Any]:
    """Yields the module tensorflow_datasets, and keeps its announcements to itself meanwhile.

    The module is imported only when needed: it takes two seconds, and a corpus that is prepared
    already can do without.
    """
    import tensorflow_datasets as tfds

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield tfds
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)


def open_builder(directory: Path) -> Any:
    """Returns the builder of the dataset in a directory."""
    with quiet() as tfds:
        return tfds.builder_from_directory(directory)


def find_builder(name: str) -> Any:
    """Returns the builder of a prepared dataset, by registered name or directory.

    Raises:
      ConfigError: no such dataset, or not one that can be read without TensorFlow.
    """
    path = Path(name).expanduser()
    is_path = name.startswith((".", "~", "/")) or path.is_dir()
    with quiet() as tfds:
        try:
            found = tfds.builder_from_directory(path) if is_path else tfds.builder(name)
        except (tfds.core.DatasetNotFoundError, OSError) as error:
            what = "holds no dataset" if is_path else "is neither known nor prepared"
            raise ConfigError(
                f"tfds:{name}: {what}; prepare it with file_format='array_record', or give its "
                "directory: tfds:/data/NAME/VERSION"
            ) from error
        if not found.info.splits:
            raise ConfigError(
                f"tfds:{name}: is known but not prepared in {found.data_dir}; prepare it with "
                "`tfds build --file_format=array_record` on a machine with TensorFlow"
            )
        if found.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
            raise ConfigError(
                f"tfds:{name}: is stored as {found.info.file_format.value}, which needs "
                "TensorFlow; nearest valid: file_format='array_record'"
            )
    return found


def _text(value: Any, where: str) -> str:
    raw = value.encode() if isinstance(value, str) else value
    if not isinstance(raw, bytes):
        raise ConfigError(f"{where}: the text is of type {type(value).__name__}, not a string")
    return decode(raw, where)


def _label(features: Any, example: dict[str, Any], field: str, default: str, where: str) -> str:
    if field not in example:
        return default
    value = example[field]
    if hasattr(features[field], "int2str"):
        return str(features[field].int2str(int(value)))
    return _text(value, where)
