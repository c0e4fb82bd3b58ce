"""One measuring process: a request on the command line, its result as a JSON file.

    python -m tools.benchmarks.worker '{"suite": "growth", ...}' RESULT.json

Started by `processes.py` in the environment that the request's allocator regime needs. Mistakes of
the caller are one line and exit code 2, as everywhere.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from tools.benchmarks import machine


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Runs a suite in this process."""
    if request["allocator"] == "tuned":
        machine.tune_allocator()  # before anything allocates much
    from tools.benchmarks.context import Context
    from tools.benchmarks.layers import unavailable
    from tools.benchmarks.suites import WITH_PEERS, suite_of
    from tools.benchmarks.timing import interleave

    context = Context.of(request)
    described = machine.describe(context.allocator)
    start = time.monotonic()
    work = suite_of(context.suite)(context)
    prepared = time.monotonic()
    timings = interleave(
        work.candidates,
        rounds=context.rounds,
        warm_up=context.warm_up if work.warm_up is None else work.warm_up,
        budget=context.budget,
    )
    if context.peers and context.suite in WITH_PEERS:
        from tools.benchmarks.peers_torch import describe_threads

        described["torch"] = describe_threads()
    return {
        "suite": context.suite,
        "machine": described,
        "load_after": list(machine.load()),
        "seconds": {"prepare": prepared - start, "measure": time.monotonic() - prepared},
        "peak_rss_bytes": machine.peak_rss(),
        "timings": {name: timing.summary() for name, timing in timings.items()},
        "notes": work.notes,
        "rows": work.rows + [c.row(context.suite, timings) for c in work.comparisons],
        "unavailable": {b: unavailable(b) for b in context.backends if unavailable(b)},
    }


def main() -> None:
    """Reads the request, writes the result."""
    from moejax.config import ConfigError, write_json

    try:
        write_json(sys.argv[2], measure(json.loads(sys.argv[1])))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
