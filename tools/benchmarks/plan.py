"""What the flags ask for, as requests to measuring processes; refused before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moejax.config import ConfigError, nearest
from tools.benchmarks.machine import ALLOCATORS
from tools.benchmarks.peers_torch import require
from tools.benchmarks.suites import SUITES, WITH_PEERS
from tools.benchmarks.targets import SUITES_WITH_TARGETS

ALL = "targets"
PROCESSES = 5
"""Per suite, for the targets."""


def suites_of(suite: str) -> tuple[str, ...]:
    """The suites that a value of --suite stands for.

    Raises:
      ConfigError: there is no such suite.
    """
    if suite == ALL:
        return SUITES_WITH_TARGETS
    if suite not in SUITES:
        known = (ALL, *SUITES)
        raise ConfigError(
            f"--suite={suite}: no such suite{nearest(suite, known)}; known: {', '.join(known)}"
        )
    return (suite,)


def requests(
    suite: str, backends: Sequence[str], *, quick: bool, peers: bool, allocator: str
) -> list[dict[str, Any]]:
    """One request (`context.Context`) per suite.

    Raises:
      ConfigError: an unknown suite or regime, no back end, or peers that are not installed.
    """
    suites = suites_of(suite)
    if allocator not in ALLOCATORS:
        raise ConfigError(
            f"--allocator={allocator}: no such regime{nearest(allocator, ALLOCATORS)}; known: "
            f"{', '.join(ALLOCATORS)}"
        )
    if not any(backends):
        raise ConfigError("--backends: names no back end; nearest valid value tiles")
    if peers and any(name in WITH_PEERS for name in suites):
        require(suite)
    shared = {
        "backends": list(backends),
        "peers": peers,
        "targets_only": quick or suite == ALL,
        "allocator": allocator,
    }
    few = {"rounds": 2, "warm_up": 1} if quick else {}
    return [{"suite": name} | shared | few for name in suites]


def processes(suite: str, asked: int, *, quick: bool) -> int:
    """Processes per suite; `asked` 0 leaves it to us.

    Raises:
      ConfigError: a number that makes no sense.
    """
    if asked < 0:
        raise ConfigError(f"--processes={asked}: must be >= 1; nearest valid value 1")
    if quick and asked > 1:
        raise ConfigError(f"--processes={asked}: --quick is one process; nearest valid value 1")
    return asked or (PROCESSES if suite == ALL and not quick else 1)
