"""The compiled kernel in this process: loaded, checked and registered with XLA once."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import re
import threading
from typing import NamedTuple

import jax

from moejax.experts.native.build import build, include_directory
from moejax.experts.native.isa import Isa, Unavailable, choose


class Scratch(NamedTuple):
    """Bytes of the kernel's own memory: held now, and the most that ever were."""

    held: int
    peak: int


@dataclasses.dataclass(frozen=True)
class Library:
    """A registered library.

    Attributes:
      isa: the instruction set that it was compiled for.
      forward, backward: names of XLA's custom calls. They hold the key of the build: a compiled
        program that is kept on disk never meets another kernel.
      handle: the library itself.
    """

    isa: str
    forward: str
    backward: str
    handle: ctypes.CDLL = dataclasses.field(repr=False, compare=False)

    def scratch(self) -> Scratch:
        """The kernel's own memory, over all calls in this process."""
        held, peak = ctypes.c_int64(), ctypes.c_int64()
        self.handle.moejax_native_scratch(ctypes.byref(held), ctypes.byref(peak))
        return Scratch(held.value, peak.value)

    def most_parts(self) -> int:
        """The most parts that one expert's backward pass was ever split into in this process."""
        return int(self.handle.moejax_native_most_parts())


_lock = threading.Lock()
_loaded: dict[Isa, Library] = {}
_refused: dict[Isa, str] = {}


def load() -> Library:
    """The library for this machine; compiled first where that was not done before.

    Raises:
      ConfigError: an unknown value of `MOEJAX_NATIVE`.
      Unavailable: there is none, and why. The reason holds for the life of the process.
    """
    isa = choose()
    with _lock:
        if isa in _loaded:
            return _loaded[isa]
        if isa in _refused:
            raise Unavailable(_refused[isa])
        try:
            found = _loaded[isa] = _register(isa)
            return found
        except Unavailable as reason:
            _refused[isa] = str(reason)
            raise


@functools.cache
def runtime_api() -> tuple[int, int]:
    """Version of the foreign function interface that this jaxlib implements.

    Raises:
      Unavailable: its headers do not say.
    """
    header = (include_directory() / "xla/ffi/api/c_api.h").read_text()
    found = [re.search(rf"#define XLA_FFI_API_{part} (\d+)", header) for part in ("MAJOR", "MINOR")]
    if not all(found):
        raise Unavailable("jaxlib's headers name no version of the foreign function interface")
    major, minor = (int(match[1]) for match in found if match)
    return major, minor


def _register(isa: Isa) -> Library:
    built = build(isa)
    try:
        handle = ctypes.CDLL(str(built.path))
        api = divmod(int(handle.moejax_native_api()), 1000)
    except (OSError, AttributeError) as error:
        raise Unavailable(f"{built.path}: cannot be loaded ({error})") from error
    # To register a handler that is newer than jaxlib takes the whole CPU backend down with it, so
    # ask first. An older one is welcome.
    runtime = runtime_api()
    if api[0] != runtime[0] or api[1] > runtime[1]:
        raise Unavailable(
            f"the kernel needs XLA FFI {api[0]}.{api[1]}, this jaxlib has {runtime[0]}.{runtime[1]}"
        )
    names = {
        name: f"moejax_experts_{name}_{isa.name}_{built.key}" for name in ("forward", "backward")
    }
    for name, target in names.items():
        handler = getattr(handle, f"moejax_native_{name}")
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(handler), platform="cpu")
    return Library(isa.name, **names, handle=handle)
