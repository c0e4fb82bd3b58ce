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
import time
from typing import Any

from absl import flags

from moejax.config import ConfigError, write_json
from moejax.config.knobs import nearest
from moejax.train.cli import launch
from tools.benchmarks.machine import ALLOCATORS
from tools.benchmarks.peers_torch import require
from tools.benchmarks.processes import Failure, measure
from tools.benchmarks.rows import Row, combine
from tools.benchmarks.suites import SUITES, WITH_PEERS
from tools.benchmarks.table import machine_line, remarks, shapes, table
from tools.benchmarks.targets import SUITES_WITH_TARGETS, judged, missing

FORMAT_VERSION = 1
PROCESSES = 5

_SUITE = flags.DEFINE_string("suite", "targets", f"targets, or one of {', '.join(SUITES)}.")
_JSON = flags.DEFINE_string("json", "", "Also write rows, times and the machine there.")
_BACKENDS = flags.DEFINE_list("backends", ["native", "tiles"], "Back ends of the experts.")
_PROCESSES = flags.DEFINE_integer("processes", 0, "Per suite; 0: 5 for the targets, else 1.")
_QUICK = flags.DEFINE_bool("quick", False, "One process, few rounds: does it run?")
_NO_PEERS = flags.DEFINE_bool("no-peers", False, "Do without torch and transformers.")
_ALLOCATOR = flags.DEFINE_string("allocator", "huge", f"One of {', '.join(ALLOCATORS)}.")


def main(argv: list[str]) -> None:
    """Measures what the flags ask for, prints the table, writes the file."""
    del argv
    requests = _requests()
    times = 1 if _QUICK.value else _PROCESSES.value or (PROCESSES if _all() else 1)
    results: list[dict[str, Any]] = []
    failures: list[Failure] = []
    for result in measure(requests, times, _say):
        if isinstance(result, Failure):
            failures.append(result)
            _say(result.reason)
            continue
        results.append(result)
        if len(results) == 1:
            for backend, reason in result["unavailable"].items():
                _say(f"back end {backend}: not available: {reason}")
        _write(_document(results, failures, times))  # what is there is there
    document = _document(results, failures, times)
    _write(document)
    _print(document)
    wrong = [row for row in document["rows"] if row["note"].startswith("mismatch")]
    if failures or wrong:
        sys.exit(1)


def _requests() -> list[dict[str, Any]]:
    """One request per suite. Raises ConfigError before anything is started."""
    suite = _SUITE.value
    if not _all() and suite not in SUITES:
        known = ("targets", *SUITES)
        raise ConfigError(
            f"--suite={suite}: no such suite{nearest(suite, known)}; known: {', '.join(known)}"
        )
    if _ALLOCATOR.value not in ALLOCATORS:
        known = ", ".join(ALLOCATORS)
        raise ConfigError(f"--allocator={_ALLOCATOR.value}: unknown regime; known: {known}")
    if _PROCESSES.value < 0 or (_QUICK.value and _PROCESSES.value > 1):
        raise ConfigError(f"--processes={_PROCESSES.value}: nearest valid value 1")
    if not any(_BACKENDS.value):
        raise ConfigError("--backends: names no back end; nearest valid value tiles")
    suites = SUITES_WITH_TARGETS if _all() else (suite,)
    if not _NO_PEERS.value and any(name in WITH_PEERS for name in suites):
        require(suite)
    few = {"rounds": 2, "warm_up": 1} if _QUICK.value else {}
    shared = {
        "backends": _BACKENDS.value,
        "peers": not _NO_PEERS.value,
        "targets_only": _all() or _QUICK.value,
        "allocator": _ALLOCATOR.value,
    }
    return [{"suite": name} | shared | few for name in suites]


def _document(results: list[dict[str, Any]], failures: list[Failure], times: int) -> dict[str, Any]:
    rows = combine([result["rows"] for result in results])
    reason = failures[0].reason if failures else "was not measured"
    suites = SUITES_WITH_TARGETS if _all() else ()
    rows += missing(rows, _BACKENDS.value, suites, reason)
    return {
        "format_version": FORMAT_VERSION,
        "suite": _SUITE.value,
        "backends": _BACKENDS.value,
        "processes": times,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": _machine(results),
        "rows": sorted(judged(rows), key=_with_targets_first),
        "failures": [failure.reason for failure in failures],
        "measurements": results,
    }


def _machine(results: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Of a process that had torch, if one had."""
    machines = [result["machine"] for result in results]
    return next((one for one in machines if "torch" in one), next(iter(machines), None))


def _with_targets_first(row: Row) -> bool:
    return row["target"] is None


def _print(document: dict[str, Any]) -> None:
    rows = document["rows"]
    if document["machine"]:
        print(machine_line(document["machine"], document["processes"]))
    print(f"\n{table(rows)}\n")
    print("\n".join([*shapes(rows), *remarks(rows)]))


def _write(document: dict[str, Any]) -> None:
    if _JSON.value:
        write_json(_JSON.value, document)


def _all() -> bool:
    return bool(_SUITE.value == "targets")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    launch(main)
