"""Safetensors files, read and written with NumPy alone.

The format is small: eight bytes with the length of a JSON header, the header (name -> dtype, shape,
first and last byte), the bytes. Reading it here instead of with the package `safetensors` needs no
torch and no extra, keeps one tensor in memory at a time, and names the tensor that a damaged or
hostile header is about. Files are bit for bit those of the package (`tests/interop` compares).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np

from moejax.config import ConfigError

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
"""What a tensor may be. The format's 8-bit floats and integers of odd widths are not among them:
they are parts of quantised weights, whose other parts this project does not read."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}

MAX_HEADER = 100_000_000
"""Bytes of the largest header, as in the package."""
MAX_TENSORS = 2_000_000
MAX_RANK = 8
MAX_NAME = 500
_SHOWN = 80


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """A tensor of a file: its shape, its dtype's name in the format, its first and last byte."""

    shape: tuple[int, ...]
    dtype: str
    start: int
    stop: int

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        return DTYPES[self.dtype]


class SafetensorsFile:
    """One file: its header is read and checked whole, its tensors on demand.

    Args:
      path: the file.

    Raises:
      ConfigError: it is missing, cut short or no safetensors file, or its header is wrong; the
        message names the tensor.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                self.tensors, self.metadata, self._data = _header(self.path, file.read, size)
        except FileNotFoundError:
            raise ConfigError(f"{self.path}: no such file") from None
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be read ({error.strerror})") from error

    def read(self, name: str) -> np.ndarray:
        """The tensor, copied out of the file.

        Raises:
          ConfigError: there is none of this name, or the file is shorter than its header says.
        """
        info = self.tensors.get(name)
        if info is None:
            raise ConfigError(f"{self.path}: holds no tensor {shown(name)}")
        with open(self.path, "rb") as file:
            file.seek(self._data + info.start)
            raw = np.fromfile(file, np.uint8, info.stop - info.start)
        if raw.size != info.stop - info.start:
            raise ConfigError(f"{self.path}: is cut short inside tensor {shown(name)}")
        return raw.view(info.numpy_dtype).reshape(info.shape)


def shown(name: Any) -> str:
    """A name of a stranger's choosing, fit for one line of a terminal."""
    text = ascii(name)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _header(
    path: Path, read: Callable[[int], bytes], size: int
) -> tuple[dict[str, TensorInfo], dict[str, str], int]:
    def refuse(what: str) -> NoReturn:
        raise ConfigError(f"{path}: {what}")

    first = read(8)
    if len(first) < 8:
        refuse(f"is no safetensors file: it has {len(first)} bytes, fewer than the 8 of a length")
    length = int.from_bytes(first, "little")
    if length > MAX_HEADER:
        refuse(f"its header would be {length} bytes long, more than {MAX_HEADER}: no such file")
    if 8 + length > size:
        refuse(f"is cut short: its header ends at byte {8 + length} of {size}")
    try:
        header = json.loads(read(length).decode(), object_pairs_hook=_no_duplicates)
    except _DuplicateError as error:
        refuse(f"its header names {shown(str(error))} twice")
    except (UnicodeDecodeError, ValueError, RecursionError):
        refuse("its header is not JSON")
    if not isinstance(header, dict):
        refuse(f"its header is no JSON object but a {type(header).__name__}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        refuse("its __metadata__ is no object of strings")
    if len(header) > MAX_TENSORS:
        refuse(f"its header names {len(header)} tensors, more than {MAX_TENSORS}")
    data = size - 8 - length
    tensors = {name: _info(path, name, entry, data) for name, entry in header.items()}
    end = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if info.start != end:
            what = "overlaps another tensor" if info.start < end else "leaves a gap before it"
            refuse(f"tensor {shown(name)} starts at byte {info.start}, expected {end}: it {what}")
        end = info.stop
    if end != data:
        refuse(f"has {data} bytes of tensors, but its header describes {end}")
    return tensors, metadata, 8 + length


def _info(path: Path, name: str, entry: Any, data: int) -> TensorInfo:
    def refuse(what: str) -> NoReturn:
        raise ConfigError(f"{path}: tensor {shown(name)}: {what}")

    if not name or len(name) > MAX_NAME:
        refuse(f"its name has {len(name)} characters, not 1 to {MAX_NAME}")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        refuse("its entry does not have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        refuse(f"has dtype {shown(dtype)}; known: {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(map(_is_size, shape)):
        refuse(f"has shape {shown(shape)}, which is no list of up to {MAX_RANK} sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        refuse(f"has data_offsets {shown(offsets)}, which are no two byte numbers")
    start, stop = offsets
    if not start <= stop:
        refuse(f"ends at byte {stop} before it starts at {start}")
    if stop > data:
        refuse(f"ends at byte {stop} of {data}: the file is cut short or the header is wrong")
    wanted = math.prod(shape) * DTYPES[dtype].itemsize
    if stop - start != wanted:
        refuse(f"has {stop - start} bytes, but {dtype}{shape} needs {wanted}")
    return TensorInfo(tuple(shape), dtype, start, stop)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


class _DuplicateError(ValueError):
    """A JSON object with the same key twice: which of the two is meant, nobody knows."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _DuplicateError(key)
        found[key] = value
    return found


def header_bytes(
    shapes: Mapping[str, tuple[tuple[int, ...], str]], metadata: Mapping[str, str]
) -> bytes:
    """Length and header of a file with these tensors, `name -> (shape, dtype name)`, in order; the
    data starts at a multiple of 8."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (shape, dtype) in shapes.items():
        start, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_safetensors(
    path: str | os.PathLike[str],
    shapes: Mapping[str, tuple[tuple[int, ...], str]],
    arrays: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str],
) -> None:
    """Writes a file tensor by tensor, whole or not at all.

    Args:
      path: the file.
      shapes: `name -> (shape, dtype name)`, in the order of `arrays`.
      arrays: `(name, tensor)`, asked for one at a time.
      metadata: strings for the header.

    Raises:
      ValueError: the arrays are not those announced.
    """
    target = Path(path)
    temporary = target.parent / f".{target.name}.{os.getpid()}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(header_bytes(shapes, metadata))
            announced = iter(shapes.items())
            for name, array in arrays:
                expected, (shape, dtype) = next(announced, ("", ((), "")))
                if (name, array.shape, array.dtype) != (expected, shape, DTYPES.get(dtype)):
                    raise ValueError(
                        f"{target}: {name} {array.dtype}{array.shape} is not what was announced, "
                        f"{expected} {dtype}{shape}"
                    )
                # Bytes, because NumPy's buffers do not know bfloat16.
                file.write(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
            if next(announced, None) is not None:
                raise ValueError(f"{target}: fewer tensors than announced")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
