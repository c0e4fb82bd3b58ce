"""Measure ratios that mean something on a noisy machine, and hold them against the targets.

usage:
  python -m tools.bench --suite=targets|NAME [--json=FILE] [--backends=native,tiles]
      [--processes=N] [--quick] [--no-peers] [--allocator=huge|default|tuned]

examples:
  python -m tools.bench --suite=targets --json=runs/bench.json
  python -m tools.bench --suite=moe_layer --backends=tiles --no-peers
  python -m tools.bench --suite=lm_step --quick

Every ratio is one of neighbours: its two sides take turns in one process. `targets` measures what
has a target in 5 fresh processes per suite. Exit codes: 0 measured (met or not), 1 a suite failed
or a peer disagrees with us, 2 wrong use. See docs/performance.md.
"""

from __future__ import annotations

import sys
from typing import Any

from absl import flags

from moejax.config import write_json
from moejax.train.cli import launch
from tools.benchmarks.machine import ALLOCATORS
from tools.benchmarks.plan import ALL, processes, requests, suites_of
from tools.benchmarks.processes import Failure, measure
from tools.benchmarks.report import disagreements, document, text
from tools.benchmarks.suites import SUITES

_SUITE = flags.DEFINE_string("suite", ALL, f"{ALL}, or one of {', '.join(SUITES)}.")
_JSON = flags.DEFINE_string("json", "", "Also write rows, times and the machine there.")
_BACKENDS = flags.DEFINE_list("backends", ["native", "tiles"], "Back ends of the experts.")
_PROCESSES = flags.DEFINE_integer("processes", 0, "Per suite; 0: 5 for the targets, else 1.")
_QUICK = flags.DEFINE_bool("quick", False, "One process, two rounds: does it run?")
_NO_PEERS = flags.DEFINE_bool("no-peers", False, "Do without torch and transformers.")
_ALLOCATOR = flags.DEFINE_string("allocator", "huge", f"One of {', '.join(ALLOCATORS)}.")


def main(argv: list[str]) -> None:
    """Measures what the flags ask for, prints the table, writes the file."""
    del argv
    asked = requests(
        _SUITE.value,
        _BACKENDS.value,
        quick=_QUICK.value,
        peers=not _NO_PEERS.value,
        allocator=_ALLOCATOR.value,
    )
    times = processes(_SUITE.value, _PROCESSES.value, quick=_QUICK.value)
    results: list[dict[str, Any]] = []
    failures: list[Failure] = []
    made = _document(times, results, failures)
    for result in measure(asked, times, _say):
        if isinstance(result, Failure):
            failures.append(result)
            _say(result.reason)
        else:
            results.append(result)
            if len(results) == 1:
                for backend, reason in result["unavailable"].items():
                    _say(f"back end {backend} is not available: {reason}")
        made = _document(times, results, failures)
        if _JSON.value:
            write_json(_JSON.value, made)  # whatever comes later, this is there
    print(text(made))
    if failures or disagreements(made):
        sys.exit(1)


def _document(times: int, results: list[dict[str, Any]], failures: list[Failure]) -> dict[str, Any]:
    return document(suites_of(_SUITE.value), _BACKENDS.value, times, results, failures)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    launch(main)
