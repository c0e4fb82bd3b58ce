"""The cache: directories that exist only whole, built by one process at a time.

A directory is built under a temporary name, forced to the disk and renamed; its name is a hash of
everything that shaped it. A process that is killed leaves a temporary directory, which nobody
reads and the next builder of the same thing removes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moejax.config import ConfigError, read_json, write_json

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
# Files up to this size are hashed whenever they are opened; of larger ones only the size is
# looked at, until `verify` is called.
SMALL = 1 << 20

Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """The progress callback that says nothing."""


def content_key(value: Any) -> str:
    """Returns 16 hex digits that stand for a JSON value."""
    return _digest(value)[:16]


def build_once(
    final: Path, build: Callable[[Path], dict[str, Any]], progress: Progress = silent
) -> dict[str, Any]:
    """Returns the manifest of the directory `final`, after building it if it does not exist.

    Args:
      final: where it shall be; its name identifies its content.
      build: fills an empty directory and returns its manifest, to which the files' sizes and
        hashes are added here.
      progress: told "waiting for another process" where one is building the same.

    Raises:
      ConfigError: the cache cannot be written, or what lies at `final` is damaged.
    """
    if not (final / MANIFEST).is_file():
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            with _locked(final.with_name(final.name + ".lock"), progress):
                if not (final / MANIFEST).is_file():
                    _build(final, build)
        except OSError as error:
            place = error.filename or final
            raise ConfigError(
                f"{place}: cannot write the data cache ({error.strerror}); choose another place "
                "with config.data.cache_dir or $MOEJAX_CACHE"
            ) from error
    return read_manifest(final)


def read_manifest(directory: Path) -> dict[str, Any]:
    """Reads a manifest and checks cheaply that the files are those it was written for.

    Raises:
      ConfigError: missing, changed, of another format version, or `check_files` fails.
    """
    path = directory / MANIFEST
    manifest = read_json(path)
    if not isinstance(manifest, dict) or "checksum" not in manifest:
        raise ConfigError(f"{path}: is not a manifest of prepared data; {_cure(directory)}")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ConfigError(
            f"{path}: has format version {manifest.get('format_version')}, this program reads "
            f"{FORMAT_VERSION}; {_cure(directory)}"
        )
    if manifest.get("checksum") != _checksum(manifest):
        raise ConfigError(f"{path}: was changed after it was written; {_cure(directory)}")
    check_files(directory, manifest)
    return manifest


def manifest_hash(manifest: dict[str, Any]) -> str:
    """Returns the SHA-256 of what a manifest says about the data; equal wherever the data is.

    Left out are `environment` (versions, places), the baselines (sums of logarithms, whose last
    bits depend on the processor) and the shards (their bytes are the archive's own business, and
    the documents in them have hashes of their own).
    """
    others = ("manifest_hash", "checksum", "environment", "baselines")
    kept = {k: v for k, v in manifest.items() if k not in others}
    kept["files"] = {k: v for k, v in kept["files"].items() if not k.startswith("tfds/")}
    return _digest(kept)


def _checksum(manifest: dict[str, Any]) -> str:
    return _digest({k: v for k, v in manifest.items() if k != "checksum"})


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_files(directory: Path, manifest: dict[str, Any], *, full: bool = False) -> None:
    """Compares files with the manifest: all sizes; hashes of small files, or of all if `full`.

    Raises:
      ConfigError: a file is missing, cut short, too long, or has another content.
    """
    for name, record in manifest["files"].items():
        file = directory / name
        try:
            size = file.stat().st_size
        except FileNotFoundError:
            raise ConfigError(f"{file}: is missing; {_cure(directory)}") from None
        if size != record["bytes"]:
            what = "truncated" if size < record["bytes"] else "changed"
            raise ConfigError(
                f"{file}: {what}: {size} bytes where the manifest says {record['bytes']}; "
                f"{_cure(directory)}"
            )
        if (full or size <= SMALL) and file_hash(file) != record["sha256"]:
            raise ConfigError(
                f"{file}: its content changed after the data was prepared (SHA-256 differs from "
                f"the manifest's); {_cure(directory)}"
            )


def file_hash(file: Path) -> str:
    """Returns the SHA-256 of a file."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _cure(directory: Path) -> str:
    return f"delete {directory} to prepare it again"


def _build(final: Path, build: Callable[[Path], dict[str, Any]]) -> None:
    for dead in final.parent.glob(f".building-{final.name}-*"):
        shutil.rmtree(dead)  # we hold the lock, so its builder is gone
    if final.exists():
        raise ConfigError(f"{final}: exists without {MANIFEST}; {_cure(final)}")
    temporary = Path(tempfile.mkdtemp(prefix=f".building-{final.name}-", dir=final.parent))
    try:
        manifest = build(temporary) | {"format_version": FORMAT_VERSION}
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        manifest["files"] = {
            path.relative_to(temporary).as_posix(): {
                "bytes": path.stat().st_size,
                "sha256": file_hash(path),
            }
            for path in files
        }
        manifest["manifest_hash"] = manifest_hash(manifest)
        manifest["checksum"] = _checksum(manifest)
        for path in files:
            _sync(path)
        write_json(temporary / MANIFEST, manifest)
        os.chmod(temporary, 0o755)  # mkdtemp makes it private; a cache may be shared
        os.replace(temporary, final)
        _sync(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    with open(path, "a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process", 0, 1)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield  # closing the file, or the death of this process, releases the lock


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
