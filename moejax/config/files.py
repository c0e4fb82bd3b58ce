"""Files: whole or absent, never half written; mistakes name the file."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from moejax.config.knobs import ConfigError, nearest, show


def write_bytes_atomic(path: str | os.PathLike[str], data: bytes, *, durable: bool = True) -> None:
    """Writes a file so that a reader sees the old content or the new, never a part.

    Args:
      path: the file; its directory is made if absent.
      data: the whole content.
      durable: also wait until content and name are on the disk (fsync).
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Same directory, so that the rename stays in one file system; unique per writer.
    temporary = target.parent / f".{target.name[:200]}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    if durable:
        _sync_directory(target.parent)


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Writes JSON atomically and durably: indent 2, sorted keys; NumPy scalars become numbers.

    Raises:
      ConfigError: a NaN or infinity, a key that is not a string, or a value JSON cannot hold;
        the file is then untouched.
    """
    plain = _jsonable(obj, os.fspath(path), "")
    text = json.dumps(plain, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_bytes_atomic(path, (text + "\n").encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads a JSON file.

    Raises:
      ConfigError: it is missing, is a directory, is empty or cut short, or is not JSON.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file{_near_file(file)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not JSON (not UTF-8 text: {error.reason})") from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from error
    if not text.strip():
        raise ConfigError(f"{file}: is empty; expected JSON")
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text.rstrip()) or "Unterminated" in error.msg
        what = "is cut short" if cut else f"is not JSON ({error.msg})"
        raise ConfigError(f"{file}: {what}, line {error.lineno} column {error.colno}") from error
    except _ConstantError as error:
        raise ConfigError(f"{file}: holds {error}, which is not JSON") from error


class _ConstantError(ValueError):
    """A NaN or infinity inside a JSON text."""


def _refuse_constant(name: str) -> NoReturn:
    raise _ConstantError(name)


def _near_file(file: Path) -> str:
    parent = file.parent
    while not parent.is_dir() and parent != parent.parent:
        file, parent = parent, parent.parent
    if not parent.is_dir():
        return ""
    hint = nearest(file.name, sorted(os.listdir(parent)))
    return hint if file.parent == parent and hint else ""


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _jsonable(obj: Any, file: str, where: str) -> Any:
    """Returns obj with tuples as lists and NumPy scalars as numbers, refusing what JSON cannot."""
    if isinstance(obj, Mapping):
        for key in obj:
            if not isinstance(key, str):
                raise ConfigError(f"{file}: the key {where}{key!r} is not a string")
        return {key: _jsonable(value, file, f"{where}{key}.") for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_jsonable(value, file, f"{where}{i}.") for i, value in enumerate(obj)]
    if getattr(obj, "shape", None) == () and hasattr(obj, "item"):
        obj = obj.item()
    if isinstance(obj, float) and not math.isfinite(obj):
        raise ConfigError(f"{file}: {where[:-1] or 'the value'}={obj} is not finite; use null")
    if obj is None or isinstance(obj, bool | int | float | str):
        return obj
    raise ConfigError(
        f"{file}: {where[:-1] or 'the value'}={show(obj)} of type {type(obj).__name__} "
        "is not JSON; nearest valid: a number, string, list or dict"
    )
