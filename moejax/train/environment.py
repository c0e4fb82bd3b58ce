"""Where a run happened, and whether a later attempt can repeat it bit for bit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

PACKAGES = (
    "moejax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers",
    "tensorflow-datasets", "ml-collections",
)  # fmt: skip
RECORDED_VARIABLES = ("XLA_FLAGS", "JAX_PLATFORMS", "JAX_ENABLE_X64", "LIBTPU_INIT_ARGS", "NPROC")
"""An explicit list: a whole environment may hold keys and tokens."""

BITWISE = (
    "packages.jax", "packages.jaxlib", "packages.optax", "packages.numpy", "devices", "cores",
    "machine", "variables", "git.sha", "processes", "mesh",
)  # fmt: skip
"""What must not change between two attempts for their numbers to be the same bits."""


def collect(argv: list[str], mesh: dict[str, int]) -> dict[str, Any]:
    """The content of env.json, without its history; `mesh`: devices along each axis."""
    return {
        "format_version": 1,
        "git": git_state(Path(__file__).resolve().parent),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": jax.default_backend(),
        "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()],
        "processes": jax.process_count(),
        "mesh": mesh,
        "cores": usable_cores(),
        "machine": f"{platform.machine()} {cpu_model()}",
        "system": platform.platform(),
        "host": socket.gethostname(),
        "variables": {name: os.environ.get(name, "") for name in RECORDED_VARIABLES},
        "argv": argv,
    }


def bitwise_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What changed since an earlier attempt and can change numbers, as `key: old -> new`."""
    rows = []
    for key in BITWISE:
        before, after = _lookup(old, key), _lookup(new, key)
        if before != after:
            rows.append(f"{key}: {_short(before)} -> {_short(after)}")
    return rows


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name, or its architecture where the system does not tell."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_state(directory: Path) -> dict[str, Any]:
    """`{"sha", "dirty"}` of the checkout that holds `directory`; None outside of one."""
    sha = _git(directory, "rev-parse", "HEAD")
    status = _git(directory, "status", "--porcelain", "--untracked-files=no")
    return {"sha": sha, "dirty": None if sha is None or status is None else bool(status)}


def _git(directory: Path, *args: str) -> str | None:
    command = ["git", "-C", str(directory), *args]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no git on this machine: nothing to record
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _lookup(tree: dict[str, Any], key: str) -> Any:
    value: Any = tree
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} x {value[0]}" if value else "none"
    return str(value)


def python_argv() -> list[str]:
    """The command line as typed."""
    return list(sys.orig_argv)
