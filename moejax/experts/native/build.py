"""Compiles the kernel into a per-user cache, once for each version of everything that shapes it.

`$MOEJAX_NATIVE_CACHE`, else `$MOEJAX_CACHE/native`, else `~/.cache/moejax/native` holds, for each
instruction set and key, `NAME.so` and `NAME.json`, which says how the compilation went. Both are
written whole or not at all; a lock keeps processes from compiling the same thing twice; a library
that is not what its record says is compiled again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
from absl import logging

from moejax.config.files import read_json, write_json
from moejax.config.knobs import ConfigError
from moejax.experts.native.isa import Isa, Unavailable

SOURCES = Path(__file__).resolve().parent
# No fast-math: a NaN must stay one. Fused multiply-adds are wanted.
FLAGS = (
    *("-std=c++20", "-O3", "-fPIC", "-pthread", "-w"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)
FORMAT_VERSION = 1
TIMEOUT_SECONDS = 600


class Compiler(NamedTuple):
    """A C++ compiler: its command, and what it says that it is."""

    command: tuple[str, ...]
    version: str


class Built(NamedTuple):
    """A compiled library: its file, and the key that stands for everything that shaped it."""

    path: Path
    key: str


def build(isa: Isa, *, again: bool = False) -> Built:
    """The library for an instruction set, compiled if the cache does not have it.

    Args:
      again: try once more what failed before.

    Raises:
      Unavailable: no compiler, no headers, a compilation that failed (now or before), or a cache
        that cannot be written.
    """
    directory = cache_directory()
    made_of = _made_of(isa)
    try:
        compiler = find_compiler()
    except Unavailable:
        if found := _made_before(isa, made_of, directory):
            return found
        raise
    key = hashlib.sha256(repr((made_of, compiler)).encode()).hexdigest()[:16]
    path = directory / f"{isa.name}-{key}.so"
    record = path.with_suffix(".json")
    try:
        if not _valid(path, record, again):
            directory.mkdir(parents=True, exist_ok=True)
            with _locked(path.with_suffix(".lock")):
                # Another process may have compiled it while this one waited.
                if not _valid(path, record, again):
                    _compile(path, record, isa, compiler, made_of)
    except OSError as error:
        place = error.filename or directory
        raise Unavailable(f"{place}: cannot write the cache ({error.strerror})") from error
    return Built(path, key)


def cache_directory() -> Path:
    """Where compiled kernels are kept.

    Raises:
      Unavailable: it is in the home directory of a user who has none.
    """
    own = os.environ.get("MOEJAX_NATIVE_CACHE")
    root = os.environ.get("MOEJAX_CACHE") or "~/.cache/moejax"
    path = Path(own or Path(root) / "native")
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise Unavailable(
            f"{path}: no home directory; nearest valid an absolute path in MOEJAX_NATIVE_CACHE"
        ) from error


def find_compiler() -> Compiler:
    """`$CXX`, else g++, else clang++.

    Raises:
      Unavailable: there is none, or `$CXX` is no command.
    """
    text = os.environ.get("CXX", "")
    try:
        wanted = shlex.split(text)
    except ValueError as error:
        what = str(error).lower()
        raise Unavailable(f"CXX={text!r}: {what}; nearest valid value CXX=g++") from error
    candidates = [wanted] if wanted else [["g++"], ["clang++"]]
    for program, *arguments in candidates:
        path = shutil.which(program)
        if path is None:
            continue
        command = (path, *arguments)
        try:
            said = subprocess.run(
                (*command, "--version"), capture_output=True, text=True, timeout=60, check=True
            )
        except (OSError, subprocess.SubprocessError):
            continue
        return Compiler(command, said.stdout.splitlines()[0] if said.stdout else "")
    names = " or ".join(program for program, *_ in candidates)
    raise Unavailable(f"no C++ compiler: {names} is not there{' (CXX)' if wanted else ''}")


def include_directory() -> Path:
    """The headers of XLA's foreign function interface, as this jaxlib has it.

    Raises:
      Unavailable: it has none.
    """
    include = Path(jax.ffi.include_dir())
    if not (include / "xla/ffi/api/ffi.h").is_file():
        raise Unavailable(f"jaxlib has no headers in {include}")
    return include


def _made_of(isa: Isa) -> str:
    """What stands for everything that shapes a library but the compiler."""
    include = include_directory()
    texts = sorted((*SOURCES.glob("*.cc"), *SOURCES.glob("*.h"), *include.glob("xla/ffi/api/*.h")))
    digest = hashlib.sha256()
    for path in texts:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    digest.update(repr((FLAGS, isa.compiler, platform.machine())).encode())
    digest.update(repr(platform.libc_ver()).encode())
    return digest.hexdigest()


def _made_before(isa: Isa, made_of: str, directory: Path) -> Built | None:
    """A library that some compiler made of the same: it outlives its compiler."""
    for record in sorted(directory.glob(f"{isa.name}-*.json")):
        path = record.with_suffix(".so")
        with contextlib.suppress(ConfigError):
            if read_json(record).get("made_of") == made_of and _valid(path, record, again=True):
                return Built(path, path.stem.removeprefix(f"{isa.name}-"))
    return None


def _valid(path: Path, record: Path, again: bool) -> bool:
    """Whether the cache holds the library.

    Raises:
      Unavailable: it holds a failure, which is not to be tried `again`.
    """
    try:
        said = read_json(record)
        content = path.read_bytes() if "error" not in said else b""
    except (ConfigError, OSError):
        return False
    if said.get("format_version") != FORMAT_VERSION:
        return False
    if "error" in said:
        if again:
            return False
        raise Unavailable(f"{said['error']} (python -m moejax.experts.native tries again)")
    # A file that was cut short would take the process down when it is mapped.
    return hashlib.sha256(content).hexdigest() == said.get("sha256")


def _compile(path: Path, record: Path, isa: Isa, compiler: Compiler, made_of: str) -> None:
    """Compiles and links; the record is written last.

    Raises:
      Unavailable: it failed; the record says so.
    """
    logging.warning("compiling the native expert kernel for %s (about 10 s, once)", isa.name)
    include = include_directory()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".building-") as scratch:
        objects = []

        def one(source: Path) -> str | None:
            output = str(Path(scratch) / f"{source.stem}.o")
            objects.append(output)
            flags = (*FLAGS, *isa.compiler, "-isystem", str(include), "-c", str(source))
            return _run((*compiler.command, *flags, "-o", output))

        # The one that includes XLA's headers takes as long as the others together.
        sources = sorted(SOURCES.glob("*.cc"), key=lambda source: source.stem != "handlers")
        with ThreadPoolExecutor(2) as pool:
            errors = [error for error in pool.map(one, sources) if error]
        library = str(Path(scratch) / "library.so")
        if not errors:
            link = ("-shared", "-pthread", *sorted(objects), "-o", library)
            errors = [error for error in [_run((*compiler.command, *link))] if error]
        said: dict[str, object] = {
            "format_version": FORMAT_VERSION,
            "isa": isa.name,
            "made_of": made_of,
            "compiler": [*compiler.command, compiler.version],
        }
        if errors:
            error = f"compiling failed: {errors[0]}"
            write_json(record, said | {"error": error})
            raise Unavailable(error)
        content = Path(library).read_bytes()
        os.replace(library, path)
        write_json(record, said | {"sha256": hashlib.sha256(content).hexdigest()})


def _run(command: tuple[str, ...]) -> str | None:
    """What a compiler's command had to complain about, in a line; None if it succeeded."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, errors="replace"
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"{command[0]}: {type(error).__name__}"
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    said = next((line for line in lines if "error" in line), lines[0] if lines else "")
    return said or f"{command[0]} ended with {done.returncode}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        # A file system without locks: two processes may compile the same, which harms nobody.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
