"""Reads `.npz` and `.npy` files of strangers: no pickle, bounded sizes, checked shapes."""

from __future__ import annotations

import dataclasses
import lzma
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

FORMAT_VERSION = 1
MAX_ARRAY_BYTES = 1 << 30
# zipfile answers RuntimeError to encryption and NotImplementedError to an unknown compression.
_UNREADABLE = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    RuntimeError,
)


class ArrayFileError(ValueError):
    """One line: which file, which array, what is wrong."""


@dataclasses.dataclass(frozen=True)
class Field:
    """What one array must be: its axis letters ("L", "LE", "" for a scalar) and its dtype kinds."""

    axes: str
    kinds: str = "iuf"
    required: bool = True


def read_arrays(path: Path, fields: Mapping[str, Field]) -> dict[str, NDArray]:
    """The arrays named in `fields`, after checking that equal axis letters have equal lengths.

    Arrays that `fields` does not name are not even read. Optional ones may be absent.

    Raises:
      ArrayFileError: missing, not a zip, torn, pickled, too large, or not of the stated form.
    """
    where = path.name
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            found = {
                name: _read_one(archive, members[name], f"{where}:{name}")
                for name in fields
                if name in members
            }
    except _UNREADABLE as error:
        raise ArrayFileError(f"{where}: cannot be read ({_first_line(error)})") from error
    missing = [name for name, field in fields.items() if field.required and name not in found]
    if missing:
        raise ArrayFileError(f"{where}: has no array {missing[0]!r}")
    _check_axes(found, fields, where)
    return found


def read_array(path: Path) -> NDArray:
    """The array of a `.npy` file.

    Raises:
      ArrayFileError: missing, not a NumPy array, torn, pickled, or too large.
    """
    try:
        with open(path, "rb") as stream:
            return _read_stream(stream, os.fstat(stream.fileno()).st_size, path.name)
    except OSError as error:
        raise ArrayFileError(f"{path.name}: cannot be read ({_first_line(error)})") from error


def array_names(path: Path) -> list[str]:
    """Names of the arrays in a `.npz` file, in its order.

    Raises:
      ArrayFileError: it is no such file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except _UNREADABLE as error:
        raise ArrayFileError(f"{path.name}: cannot be read ({_first_line(error)})") from error


def _read_one(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> NDArray:
    with archive.open(info) as stream:
        return _read_stream(stream, info.file_size, where)


def _read_stream(stream: IO[bytes], length: int, where: str) -> NDArray:
    """The array in a stream of `length` bytes."""
    if length > MAX_ARRAY_BYTES:
        raise ArrayFileError(f"{where}: {length:,} bytes, more than {MAX_ARRAY_BYTES:,}")
    try:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(stream)
        # Checked before anything of that size is allocated: a header may claim any shape.
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject:
            raise ArrayFileError(f"{where}: holds pickled objects, which are never loaded")
        if min(shape, default=0) < 0 or size > length:
            raise ArrayFileError(f"{where}: header says {shape} but the data is shorter")
        data = stream.read(size)
    except (ValueError, EOFError) as error:
        if isinstance(error, ArrayFileError):
            raise
        raise ArrayFileError(f"{where}: not a NumPy array ({_first_line(error)})") from error
    if len(data) != size:
        raise ArrayFileError(f"{where}: cut short, {len(data):,} of {size:,} bytes")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _check_axes(found: Mapping[str, NDArray], fields: Mapping[str, Field], where: str) -> None:
    lengths: dict[str, tuple[int, str]] = {}
    for name, array in found.items():
        field = fields[name]
        if array.ndim != len(field.axes):
            raise ArrayFileError(
                f"{where}:{name}: shape {array.shape}, expected axes [{', '.join(field.axes)}]"
            )
        if array.dtype.kind not in field.kinds:
            raise ArrayFileError(f"{where}:{name}: dtype {array.dtype}, expected numbers")
        for axis, length in zip(field.axes, array.shape, strict=True):
            known, by = lengths.setdefault(axis, (length, name))
            if known != length:
                raise ArrayFileError(
                    f"{where}:{name}: axis {axis} is {length} but {known} in {by!r}"
                )


def newest(directory: Path) -> list[Path]:
    """The `STEP.npz` files of a directory, newest step first; [] if there is no directory."""
    if not directory.is_dir():
        return []
    steps = [
        (int(stem), entry)
        for entry in sorted(os.listdir(directory))
        if entry.endswith(".npz") and (stem := entry.removesuffix(".npz")).isdecimal()
        if len(stem) <= 18
    ]
    return [directory / entry for _, entry in sorted(steps, reverse=True)]


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
