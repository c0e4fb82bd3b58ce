"""Documents: the unit of text, and the one way from bytes to it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from moejax.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Document:
    """One text. `where` names its file and record for messages; it is no part of its identity.

    Attributes:
      id: unique in its corpus and the same on every machine (no absolute path).
      text: normalised: no byte order mark at the start, lines end in '\\n'.
      domain: what kind of text ("drama", "code", ...).
      language: what language ("en", "python", ..., "und" where nobody said).
      where: file and record.
      split: "train" or "validation" where the corpus itself says so, else "".
    """

    id: str
    text: str
    domain: str
    language: str
    where: str
    split: str = ""


def decode(raw: bytes, where: str) -> str:
    """Returns normalised text: a leading byte order mark goes, CRLF and CR become LF.

    Raises:
      ConfigError: not UTF-8; the message names `where`, line and byte.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{where}: not UTF-8 at line {line}, byte {error.start} "
            f"(0x{raw[error.start]:02x}: {error.reason}); convert it, e.g. with iconv -t UTF-8"
        ) from error
    return normalise(text)


def normalise(text: str) -> str:
    """Returns `text` without a leading byte order mark and with LF line ends."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def read_bytes(file: str | os.PathLike[str]) -> bytes:
    """Reads a whole file.

    Raises:
      ConfigError: missing, a directory, or not readable.
    """
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"{os.fspath(file)}: cannot be read ({error.strerror})") from error
