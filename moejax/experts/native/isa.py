"""Instruction sets that the kernel is compiled for, and which of them this machine has."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from moejax.config.knobs import ConfigError

VARIABLE = "MOEJAX_NATIVE"
"""`avx512` or `avx2` asks for one of them, `off` for none; unset or `auto`: the best there is."""


class Unavailable(Exception):
    """Why the native kernel cannot be used here, in one line."""


@dataclasses.dataclass(frozen=True)
class Isa:
    """An instruction set.

    Attributes:
      name: what `MOEJAX_NATIVE` calls it.
      compiler: flags for the compiler.
      cpu: what /proc/cpuinfo must list: everything that the compiler may use.
    """

    name: str
    compiler: tuple[str, ...]
    cpu: frozenset[str]


_AVX2 = ("avx2", "fma")
_AVX512 = ("avx512f", "avx512dq", "avx512bw", "avx512vl", *_AVX2)
ISAS = tuple(
    Isa(name, tuple(f"-m{word}" for word in words), frozenset(words))
    for name, words in (("avx512", _AVX512), ("avx2", _AVX2))
)
"""Best first. There is none for less: `tiles` is faster than the kernel without AVX2."""


def choose() -> Isa:
    """The instruction set to use.

    Raises:
      ConfigError: `MOEJAX_NATIVE` is no word that we know.
      Unavailable: it is `off`, or this processor lacks what is needed.
    """
    wanted = os.environ.get(VARIABLE) or "auto"
    names = [isa.name for isa in ISAS]
    if wanted not in ("auto", "off", *names):
        valid = ", ".join(("auto", *names, "off"))
        raise ConfigError(f"{VARIABLE}={wanted!r}: unknown; nearest valid value one of {valid}")
    if wanted == "off":
        raise Unavailable(f"{VARIABLE}=off")
    have = cpu_flags()
    usable = [isa for isa in ISAS if isa.cpu <= have and wanted in ("auto", isa.name)]
    if not usable:
        needed = next((isa for isa in ISAS if isa.name == wanted), ISAS[-1])
        missing = " ".join(sorted(needed.cpu - have))
        raise Unavailable(f"this processor lacks {missing}")
    return usable[0]


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What the processor has and the operating system allows; empty where nobody says so."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), ":")
    return frozenset(flags.split(":", 1)[1].split())
