"""Interleaved timing in one process: wall time, process CPU time and page faults of each call.

On a machine that others share, a number means little and a ratio of neighbours means something: so
every round times each candidate once, forwards and backwards in turn, and what is compared is
always taken in the same rounds. Process CPU time counts all threads of all libraries. It does not
see waiting, so it is the steadier of the two; lost parallelism is seen in wall time only.
"""

from __future__ import annotations

import dataclasses
import gc
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

Basis = Literal["cpu", "wall"]

PAUSE = 0.01
"""Seconds of rest before each call. A thread pool that has finished spins for a while in case that
more comes; that is not the next candidate's time."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Something to time.

    Attributes:
      name: unique among what is timed together.
      run: does the work and returns when it is done (`jax.block_until_ready`).
      calls: times that `run` does it; times are per call.
    """

    name: str
    run: Callable[[], Any]
    calls: int = 1


@dataclasses.dataclass(frozen=True)
class Timing:
    """Times of one candidate, seconds per call, one entry per round.

    Attributes:
      wall, cpu: elapsed time, and process CPU time over all threads.
      faults: minor page faults per call.
    """

    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    faults: tuple[float, ...]

    def of(self, basis: Basis) -> tuple[float, ...]:
        """The times of one kind."""
        return self.cpu if basis == "cpu" else self.wall

    def summary(self) -> dict[str, float]:
        """Median, minimum and spread in milliseconds, and faults, for the JSON file."""
        return {
            "wall_ms": 1e3 * statistics.median(self.wall),
            "wall_min_ms": 1e3 * min(self.wall),
            "cpu_ms": 1e3 * statistics.median(self.cpu),
            "cpu_min_ms": 1e3 * min(self.cpu),
            "cpu_spread": spread(self.cpu),
            "page_faults": statistics.median(self.faults),
            "rounds": len(self.wall),
        }


def interleave(
    candidates: Sequence[Candidate],
    *,
    rounds: int,
    warm_up: int = 2,
    budget: float = float("inf"),
    least: int = 3,
    pause: float = PAUSE,
) -> dict[str, Timing]:
    """Times all candidates, round by round.

    Args:
      candidates: with different names.
      rounds: times that each is measured.
      warm_up: calls of each before that.
      budget: seconds after which no new round begins once `least` are done.
      least: see `budget`.
      pause: seconds of rest before each measured call.
    """
    if len({candidate.name for candidate in candidates}) < len(candidates):
        raise ValueError("two candidates of the same name")
    for candidate in candidates:
        for _ in range(warm_up):
            candidate.run()
    taken: dict[str, list[tuple[float, float, float]]] = {c.name: [] for c in candidates}
    start = time.monotonic()
    collecting = gc.isenabled()
    gc.disable()  # otherwise it is some candidate's bad luck
    try:
        for number in range(rounds):
            if number >= least and time.monotonic() - start > budget:
                break
            gc.collect()
            for candidate in candidates if number % 2 == 0 else reversed(candidates):
                time.sleep(pause)
                taken[candidate.name].append(_once(candidate))
    finally:
        if collecting:
            gc.enable()
    return {name: Timing(*zip(*rows, strict=True)) for name, rows in taken.items()}


def _once(candidate: Candidate) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and page faults of one call."""
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    cpu = time.process_time()
    wall = time.perf_counter()
    result = candidate.run()
    wall = time.perf_counter() - wall
    cpu = time.process_time() - cpu
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    del result  # given back outside of the measured time, for all alike
    return wall / candidate.calls, cpu / candidate.calls, faults / candidate.calls


def spread(values: Sequence[float]) -> float:
    """Interquartile range over the median: the middle half of the values lies that far apart. 0
    for a single value."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / abs(statistics.median(values))
