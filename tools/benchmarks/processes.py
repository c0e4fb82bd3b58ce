"""Fresh processes that measure, one at a time, suite by suite, and how long they still take."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from moejax.config import read_json
from moejax.train.errors import EXIT_USAGE
from tools.benchmarks.machine import environment_of

REPOSITORY = Path(__file__).resolve().parent.parent.parent
CACHE = REPOSITORY / ".cache" / "bench"
"""Compiled programs: the next process has the same ones."""

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Failure:
    """A process that did not measure; what it said stands above it on stderr."""

    suite: str
    exit_code: int

    @property
    def reason(self) -> str:
        return f"the suite {self.suite} failed in a process of its own (exit code {self.exit_code})"


def environment(allocator: str) -> dict[str, str]:
    """The environment of a measuring process."""
    made = dict(os.environ) | environment_of(allocator)
    made.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
    made.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    # Threads of torch (libgomp) that wait burn CPU time until the others are done, most of it on a
    # busy machine. CPU time decides, so asleep is the setting that is best for torch.
    made.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    made.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    made.setdefault("HF_HUB_OFFLINE", "1")
    return {name: value for name, value in made.items() if value}


def measure(
    requests: Sequence[dict[str, Any]], times: int, say: Say
) -> Iterator[dict[str, Any] | Failure]:
    """Yields the result of every request, `times` over.

    All requests once, then all of them again: what disturbs the machine for some minutes does not
    hit every process of one suite.

    Raises:
      SystemExit: a process refused its request, and has said why in one line.
    """
    queue = [request for _ in range(times) for request in requests]
    took: dict[str, float] = {}
    for number, request in enumerate(queue):
        suite = request["suite"]
        rest = eta([other["suite"] for other in queue[number:]], took)
        if len(queue) > 1:
            say(f"process {number + 1} of {len(queue)}: {suite}{rest}")
        start = time.monotonic()
        result = _one(request)
        took[suite] = time.monotonic() - start
        yield result


def eta(queue: Sequence[str], took: dict[str, float]) -> str:
    """`, about 4 min left`: from what each suite took last time, the others like the mean; "" as
    long as nothing has been measured."""
    if not took:
        return ""
    mean = sum(took.values()) / len(took)
    seconds = sum(took.get(suite, mean) for suite in queue)
    return f", about {max(1, round(seconds / 60))} min left"


def _one(request: dict[str, Any]) -> dict[str, Any] | Failure:
    with tempfile.TemporaryDirectory(prefix="moejax-bench-") as directory:
        out = Path(directory) / "result.json"
        command = [sys.executable, "-m", "tools.benchmarks.worker", json.dumps(request), str(out)]
        code = subprocess.run(
            command, cwd=REPOSITORY, env=environment(request["allocator"]), check=False
        ).returncode
        if code == EXIT_USAGE:
            sys.exit(EXIT_USAGE)  # its one line stands on stderr
        if code or not out.is_file():
            return Failure(request["suite"], code)
        result: dict[str, Any] = read_json(out)
        return result
