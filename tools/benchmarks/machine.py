"""What was measured on: processor, load, versions, allocator and thread settings."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
from pathlib import Path
from typing import Any

from moejax.train.environment import cpu_model, git_state, usable_cores

HUGE_PAGES = "glibc.malloc.hugetlb=1"
ALLOCATORS = ("huge", "default", "tuned")
"""Regimes of glibc's malloc: `huge` pages (as the Makefile trains), as it comes, or `tuned`: never
give memory back (mallopt)."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_VARIABLES = (
    "GLIBC_TUNABLES", "XLA_FLAGS", "JAX_PLATFORMS", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
    "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME",
)  # fmt: skip
_PACKAGES = (
    "moejax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "torch",
    "transformers",
    "tokamax",
)


def environment_of(allocator: str) -> dict[str, str]:
    """The variables of a process that measures under a regime; they must be set before it starts.
    An empty value is one that must not be there."""
    return {"GLIBC_TUNABLES": HUGE_PAGES if allocator == "huge" else ""}


def tune_allocator() -> None:
    """The regime `tuned`: no mmap per allocation, and nothing given back to the system."""
    library = ctypes.CDLL(None)
    for parameter, value in (
        (_M_MMAP_MAX, 0),
        (_M_TRIM_THRESHOLD, -1),
        (_M_TOP_PAD, 256 << 20),
    ):
        if not library.mallopt(parameter, value):
            raise OSError(f"mallopt({parameter}, {value}) was refused")


def describe(allocator: str) -> dict[str, Any]:
    """Everything that a reader needs before comparing two files."""
    from importlib import metadata

    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "system": platform.platform(),
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "packages": versions,
        "allocator": allocator,
        "variables": {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)},
        "git": git_state(Path(__file__).resolve().parent),
        "load": list(os.getloadavg()),
    }


def peak_rss() -> int:
    """Largest resident size of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def load() -> tuple[float, float, float]:
    """Processes that want a core: means over 1, 5 and 15 minutes."""
    return os.getloadavg()
