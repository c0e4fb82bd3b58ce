"""The result of all processes as one document, and what of it is printed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tools.benchmarks.processes import Failure
from tools.benchmarks.rows import combine
from tools.benchmarks.table import machine_line, remarks, shapes, table
from tools.benchmarks.targets import judged, missing

FORMAT_VERSION = 1


def document(
    suites: Sequence[str],
    backends: Sequence[str],
    processes: int,
    results: Sequence[dict[str, Any]],
    failures: Sequence[Failure],
) -> dict[str, Any]:
    """What is written to --json: `rows`, and under `measurements` what each process found.

    A row has `case, backend, metric, shape, dropless, basis` (`cpu`: process-CPU time; `wall`),
    `ratio` (of that time, median of the processes), `wall_ratio, min_ratio, ratios` (of each
    process), `spread, spread_over, processes, target, met, verdict, note`.
    """
    rows = combine([result["rows"] for result in results])
    lost = {failure.suite: failure.reason for failure in failures}
    for suite in suites:
        rows += missing(rows, backends, (suite,), lost.get(suite, "was not measured"))
    machines = [result["machine"] for result in results]
    return {
        "format_version": FORMAT_VERSION,
        "suites": list(suites),
        "backends": list(backends),
        "processes": processes,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        # Of a process that had torch, if one had.
        "machine": next((one for one in machines if "torch" in one), next(iter(machines), None)),
        "rows": judged(rows),
        "failures": [failure.reason for failure in failures],
        "measurements": list(results),
    }


def text(document: dict[str, Any]) -> str:
    """The machine, the table, what the cases are, and why rows are empty."""
    rows = document["rows"]
    head = [machine_line(document["machine"], document["processes"])] if document["machine"] else []
    return "\n".join([*head, "", table(rows), "", *shapes(rows), *remarks(rows)])


def disagreements(document: dict[str, Any]) -> list[str]:
    """Peers that do not compute what we compute: nothing about their speed can be said."""
    return [row["note"] for row in document["rows"] if row["note"].startswith("mismatch")]
