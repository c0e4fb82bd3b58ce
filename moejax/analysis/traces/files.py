"""Trace files: `STEP.npz`, read without trust, written with the same bytes for the same trace."""

from __future__ import annotations

import dataclasses
import io
import os
import zipfile
from pathlib import Path

import numpy as np

from moejax.analysis import arrays
from moejax.analysis.arrays import ArrayFileError
from moejax.analysis.traces.trace import COLUMNS, NO_COUNT, Trace, TraceError, make_trace
from moejax.config.files import write_bytes_atomic

FORMAT_VERSION = 2
"""1: what the trainer writes at every evaluation, a subset of 2."""
LABELS = "labels.json"
_FIRST_DATE = (1980, 1, 1, 0, 0, 0)
_FIELDS = {
    "format_version": arrays.Field("", "iu", required=False),
    **{
        name: arrays.Field(
            column.axes,
            "iu" if np.dtype(column.held).kind in "iu" else "iuf",
            column.required,
        )
        for name, column in COLUMNS.items()
    },
}


@dataclasses.dataclass(frozen=True)
class TraceFile:
    """A trace of a run that is there, not opened yet.

    Attributes:
      corpus: the folder below `trace/`; "" for a trace of the trainer's own evaluation.
      step: optimiser steps.
      path: the file.
    """

    corpus: str
    step: int
    path: Path

    @property
    def labels(self) -> Path:
        """Where its labels are, if it has any."""
        return self.path.with_name(LABELS)


def find_traces(root: str | os.PathLike[str]) -> list[TraceFile]:
    """The traces of a run directory: by corpus (the trainer's own first), then by step."""
    top = Path(root) / "trace"
    folders = [top]
    if top.is_dir():
        folders += [top / name for name in sorted(os.listdir(top)) if (top / name).is_dir()]
    return [
        TraceFile("" if folder == top else folder.name, int(path.stem), path)
        for folder in folders
        for path in reversed(arrays.newest(folder))
    ]


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """Reads a trace file of any version, the trainer's own included.

    Raises:
      ArrayFileError: one line: it cannot be read, is of a newer format, or is not a trace.
    """
    path = Path(path)
    found = arrays.read_arrays(path, _FIELDS)
    version = int(found.pop("format_version", np.int32(1)))
    if not 1 <= version <= FORMAT_VERSION:
        raise ArrayFileError(
            f"{path.name}: has format_version {version}, this reader knows 1 to {FORMAT_VERSION}"
        )
    step = int(path.stem) if path.stem.isdecimal() and len(path.stem) <= 18 else None
    try:
        return make_trace(found, step)
    except TraceError as error:
        raise ArrayFileError(f"{path.name}:{error}") from error


def write_trace(path: str | os.PathLike[str], trace: Trace) -> None:
    """Writes a trace file atomically. Numbers that do not fit half precision become infinite."""
    write_bytes_atomic(path, trace_bytes(trace))


def trace_bytes(trace: Trace) -> bytes:
    """The content of a trace file: equal traces give equal bytes (the clock is not in it)."""
    content = {"format_version": np.array(FORMAT_VERSION, "<i4")}
    for name, array in trace.arrays().items():
        if name == "need_LTQ":
            array = np.where(np.isnan(array), NO_COUNT, array)
        with np.errstate(over="ignore"):
            content[name] = np.ascontiguousarray(array, COLUMNS[name].stored)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in content.items():
            info = zipfile.ZipInfo(f"{name}.npy", _FIRST_DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3  # whatever system this is
            with archive.open(info, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()
