"""Compares finished runs with a baseline; the table goes to the terminal as Markdown.

    python -m tools.compare runs/study --baseline=dense_seed0 --at=flops
    python -m tools.compare runs/thresholds --baseline=p=0.4 --json=FILE --csv=FILE

A directory that holds runs stands for all of them. Runs that differ in their seed only are one
row. Only finished runs on the baseline's text are compared; the others are listed with the reason.
docs/comparing.md says what each number means. JAX is not imported. Exit codes: 0 compared, 2 wrong
arguments.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import app, flags

from moejax.analysis import text
from moejax.analysis.compare import PowerLaw, as_json, compare, markdown, table_rows
from moejax.analysis.runs import find_runs, load_runs
from moejax.config.files import write_bytes_atomic, write_json
from moejax.config.knobs import ConfigError

_BASELINE = flags.DEFINE_string(
    "baseline", "", "Configuration, or one of its runs, to compare with; the first dense one."
)
_AT = flags.DEFINE_string("at", "tokens", "Equal what: tokens, flops or time.")
_BUDGET = flags.DEFINE_float(
    "budget", None, "Tokens, FLOPs or seconds to compare at; where the baseline ends."
)
_TARGET = flags.DEFINE_float(
    "target", None, "Loss in nats per token that tokens-to-target and multipliers are for."
)
_TOLERANCE = flags.DEFINE_float(
    "tolerance", 0.01, "By how much two runs' fractions of their schedules may differ; 1: any."
)
_FLOOR = flags.DEFINE_float("floor", None, "Of a power law of the baseline's family: L∞.")
_EXPONENT = flags.DEFINE_float("exponent", None, "Of the same law: alpha, as in C ** -alpha.")
_JSON = flags.DEFINE_string("json", "", "File for everything, as JSON.")
_CSV = flags.DEFINE_string("csv", "", "File for the table, as CSV with full precision.")


def main(argv: Sequence[str]) -> None:
    """Compares the run directories in `argv[1:]`."""
    try:
        runs, strangers = load_runs(find_runs(argv[1:]))
        comparison = compare(
            runs,
            baseline=_BASELINE.value,
            at=_AT.value,
            budget=_BUDGET.value,
            target=_TARGET.value,
            tolerance=_TOLERANCE.value,
            law=_law(),
        )
        if _JSON.value:
            write_json(_JSON.value, as_json(comparison))
        if _CSV.value:
            write_bytes_atomic(_CSV.value, text.csv_text(table_rows(comparison)).encode())
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {error.filename}: cannot be written ({error.strerror})", file=sys.stderr)
        sys.exit(2)
    print(markdown(comparison), end="")
    for note in strangers:
        print(f"{note.run}: {note.what}", file=sys.stderr)


def _law() -> PowerLaw | None:
    if _FLOOR.value is None and _EXPONENT.value is None:
        return None
    if _FLOOR.value is None or _EXPONENT.value is None:
        raise ConfigError("--floor and --exponent are of one law: give both or neither")
    return PowerLaw(_FLOOR.value, _EXPONENT.value)


if __name__ == "__main__":
    app.run(main)
