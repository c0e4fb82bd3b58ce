"""GGUF files: metadata and tensors of the five kinds F32, F16, Q8_0, Q4_0, Q4_1.

The container (version 2 and 3): magic, counts, key-value pairs, tensor descriptions, aligned data.
Every number in it is a stranger's: lengths are checked against the file before anything is read.
Quantised kinds are blocks of 32 numbers with a scale (and a minimum) in half precision:

    Q8_0  x = d * q            q int8
    Q4_0  x = d * (q - 8)      q 4 bits, the low halves of 16 bytes first, then the high ones
    Q4_1  x = d * q + m        as Q4_0
"""

from __future__ import annotations

import dataclasses
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from moejax.config import ConfigError
from moejax.interop.safetensors import MAX_RANK, shown

BLOCK = 32
MAX_STRING = 1 << 24
MAX_ITEMS = 1 << 24
MAX_TENSORS = 1 << 20
MAX_KEYS = 1 << 16

_SCALARS = {
    0: ("<B", 1), 1: ("<b", 1), 2: ("<H", 2), 3: ("<h", 2), 4: ("<I", 4), 5: ("<i", 4),
    6: ("<f", 4), 7: ("<?", 1), 10: ("<Q", 8), 11: ("<q", 8), 12: ("<d", 8),
}  # fmt: skip
_STRING, _ARRAY = 8, 9

_Q8_0 = np.dtype([("d", "<f2"), ("q", "i1", (BLOCK,))])
_Q4_0 = np.dtype([("d", "<f2"), ("q", "u1", (BLOCK // 2,))])
_Q4_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", (BLOCK // 2,))])


def _scale(blocks: np.ndarray, name: str) -> np.ndarray:
    return np.asarray(blocks[name], np.float32)[:, None]


def _nibbles(blocks: np.ndarray) -> np.ndarray:
    q = blocks["q"]
    return np.concatenate([q & 15, q >> 4], axis=1).astype(np.float32)


def _q8_0(raw: np.ndarray) -> np.ndarray:
    blocks = raw.view(_Q8_0)
    return _scale(blocks, "d") * blocks["q"].astype(np.float32)


def _q4_0(raw: np.ndarray) -> np.ndarray:
    blocks = raw.view(_Q4_0)
    return _scale(blocks, "d") * (_nibbles(blocks) - 8)


def _q4_1(raw: np.ndarray) -> np.ndarray:
    blocks = raw.view(_Q4_1)
    return _scale(blocks, "d") * _nibbles(blocks) + _scale(blocks, "m")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of tensor: its name, numbers and bytes per block, and how bytes become float32."""

    name: str
    numbers: int
    bytes: int
    decode: Callable[[np.ndarray], np.ndarray]


KINDS = {
    0: Kind("F32", 1, 4, lambda raw: raw.view("<f4").astype(np.float32)),
    1: Kind("F16", 1, 2, lambda raw: raw.view("<f2").astype(np.float32)),
    2: Kind("Q4_0", BLOCK, _Q4_0.itemsize, _q4_0),
    3: Kind("Q4_1", BLOCK, _Q4_1.itemsize, _q4_1),
    8: Kind("Q8_0", BLOCK, _Q8_0.itemsize, _q8_0),
}


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """A tensor's shape (outermost first, as NumPy has it), kind, and first byte in the file."""

    shape: tuple[int, ...]
    kind: Kind
    start: int

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) // self.kind.numbers * self.kind.bytes


class GgufFile:
    """A file's metadata and tensors; tensors are read on demand.

    Args:
      path: the file.

    Raises:
      ConfigError: it is missing, cut short, no GGUF, or holds a kind that is not read here; about
        a tensor, with its name.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                reader = _Reader(self.path, file)
                self.metadata, self.tensors = _contents(reader)
        except FileNotFoundError:
            raise ConfigError(f"{self.path}: no such file") from None
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be read ({error.strerror})") from error

    def read(self, name: str) -> np.ndarray:
        """A tensor, float32, in memory of its own.

        Raises:
          ConfigError: there is none of this name, or the file has become shorter.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            raise ConfigError(f"{self.path}: holds no tensor {shown(name)}")
        with open(self.path, "rb") as file:
            file.seek(tensor.start)
            raw = np.fromfile(file, np.uint8, tensor.size)
        if raw.size != tensor.size:
            raise ConfigError(f"{self.path}: is cut short inside tensor {shown(name)}")
        return tensor.kind.decode(raw).reshape(tensor.shape)


class _Reader:
    """Bounded reads from the front of a file."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.size = os.fstat(file.fileno()).st_size

    def refuse(self, what: str) -> NoReturn:
        raise ConfigError(f"{self.path}: {what}")

    def bytes(self, count: int) -> bytes:
        found = self.file.read(count) if count <= self.size else b""
        if len(found) != count:
            self.refuse("is cut short or no GGUF: its header goes on behind its end")
        return found

    def number(self, kind: int) -> Any:
        layout, size = _SCALARS[kind]
        return struct.unpack(layout, self.bytes(size))[0]

    def count(self, most: int, what: str) -> int:
        found = int(self.number(10))
        if found > most:
            self.refuse(f"has {found} {what}, more than {most}")
        return found

    def string(self) -> str:
        return self.bytes(self.count(MAX_STRING, "bytes in a string")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.number(kind)
        if kind != _ARRAY:
            self.refuse(f"has a value of the unknown kind {kind}")
        inner, count = self.number(4), self.count(MAX_ITEMS, "items in an array")
        if inner == _STRING:
            return [self.string() for _ in range(count)]
        if inner not in _SCALARS:
            self.refuse(f"has an array of the unknown kind {inner}")
        layout, size = _SCALARS[inner]
        return np.frombuffer(self.bytes(count * size), layout.replace("?", "b1")).tolist()


def _contents(reader: _Reader) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    if reader.bytes(4) != b"GGUF":
        reader.refuse("is no GGUF file: it does not begin with 'GGUF'")
    version = reader.number(4)
    if version not in (2, 3):
        reader.refuse(f"is of GGUF version {version}; read are 2 and 3")
    tensors = reader.count(MAX_TENSORS, "tensors")
    keys = reader.count(MAX_KEYS, "metadata keys")
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = reader.string()
        if key in metadata:
            reader.refuse(f"names the metadata key {shown(key)} twice")
        metadata[key] = reader.value(reader.number(4))
    described = [_describe(reader) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 16:
        reader.refuse(f"general.alignment={shown(alignment)} is no alignment")
    data = -(-reader.file.tell() // alignment) * alignment
    found: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in described:
        if name in found:
            reader.refuse(f"names the tensor {shown(name)} twice")
        tensor = GgufTensor(shape, kind, data + offset)
        if tensor.start + tensor.size > reader.size:
            reader.refuse(
                f"is cut short: tensor {shown(name)} ends at byte {tensor.start + tensor.size} of "
                f"{reader.size}"
            )
        found[name] = tensor
    return metadata, found


def _describe(reader: _Reader) -> tuple[str, tuple[int, ...], Kind, int]:
    name = reader.string()
    rank = reader.number(4)
    if rank > MAX_RANK:
        reader.refuse(f"tensor {shown(name)} has {rank} axes, more than {MAX_RANK}")
    shape = tuple(reader.count(1 << 40, "numbers along an axis") for _ in range(rank))[::-1]
    number, offset = reader.number(4), reader.number(10)
    if number not in KINDS:
        known = ", ".join(kind.name for kind in KINDS.values())
        reader.refuse(f"tensor {shown(name)} is of kind {number}; read are {known}")
    kind = KINDS[number]
    if (shape[-1] if shape else 1) % kind.numbers:
        reader.refuse(
            f"tensor {shown(name)} is {kind.name}{list(shape)}, whose rows are no whole blocks of "
            f"{kind.numbers}"
        )
    return name, shape, kind, offset
