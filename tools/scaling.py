"""Fit scaling laws to run directories or to a CSV, with intervals and what the data cannot tell.

usage:
  python -m tools.scaling RUN_DIR... [--law=LAW] [--by=group|AXIS] [--json=FILE]
  python -m tools.scaling --csv=FILE --columns=n=NAME,d=NAME,loss=NAME[,...] [--law=LAW] ...

laws: chinchilla (default), power, clark, granularity, joint, leverage. Directories may be runs,
directories of runs, or roots of grids. Columns of a CSV: n parameters, d tokens, c FLOPs,
e experts, g granularity, a activation ratio, loss, leverage, and names: group, cell, seed, run.

examples:
  python -m tools.scaling runs/scaling_ladder --law=power --by=group --json=runs/ladder.json
  python -m tools.scaling --csv=runs.csv --columns=n=params,d=tokens,loss=loss --budgets=1e18,1e19

JAX is not imported. Exit codes: 0 fitted, 2 wrong arguments or unreadable data, 5 the data cannot
determine the law (the last line says why, and what could be fitted). See docs/scaling.md.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from absl import app, flags

from moejax.analysis import scaling
from moejax.config.files import write_json
from moejax.config.knobs import ConfigError

EXIT_USAGE, EXIT_UNDETERMINED = 2, 5

_CSV = flags.DEFINE_string("csv", "", "A CSV file instead of run directories.")
_COLUMNS = flags.DEFINE_string("columns", "", "n=NAME,d=NAME,loss=NAME,...: columns of the CSV.")
_LAW = flags.DEFINE_string(
    "law", "chinchilla", "chinchilla|power|clark|granularity|joint|leverage."
)
_X = flags.DEFINE_string("x", "c", "Variable of the power law: c, n or d.")
_PIN = flags.DEFINE_float("pin", None, "The irreducible loss, given and not fitted.")
_METHOD = flags.DEFINE_string(
    "method", "vp", "vp: variable projection; huber: Huber's loss on ln L."
)
_DELTA = flags.DEFINE_float("delta", None, "Width of Huber's loss (default: the law's published).")
_BY = flags.DEFINE_string("by", "", "`group` or an axis of the grid: fit each apart and compare.")
_BASELINE = flags.DEFINE_string("baseline", "", "The group that others are compared with.")
_N = flags.DEFINE_string(
    "n", "active_non_embedding", "What N is in run directories: active_non_embedding|active|total."
)
_BUDGETS = flags.DEFINE_list("budgets", [], "FLOPs for which the optimal N and D are wanted.")
_BOOTSTRAP = flags.DEFINE_string("bootstrap", "residuals", "residuals|cells: what is drawn.")
_CLUSTER = flags.DEFINE_string("cluster", "cell", "cell|run: what has an error of its own.")
_REPLICATES = flags.DEFINE_integer("replicates", 1000, "Bootstrap replicates; 0: no intervals.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the bootstrap.")
_JSON = flags.DEFINE_string("json", "", "Also write constants, intervals and residuals there.")


def main(argv: Sequence[str]) -> None:
    """Answers the question of the flags about the data of `argv[1:]` or --csv."""
    try:
        answer = scaling.study(_dataset(argv[1:]), _question())
        if _JSON.value:
            write_json(_JSON.value, scaling.record(answer))
    except ConfigError as error:
        _end(f"error: {error}", EXIT_USAGE)
    except OSError as error:
        _end(f"error: --json={_JSON.value}: cannot be written ({error.strerror})", EXIT_USAGE)
    try:
        print(scaling.page(answer), flush=True)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if answer.refused:
        sys.exit(EXIT_UNDETERMINED)


def _dataset(paths: Sequence[str]) -> scaling.Dataset:
    if not _CSV.value:
        if not paths:
            raise ConfigError("nothing to fit: give RUN_DIR... or --csv=FILE")
        if _COLUMNS.value:
            raise ConfigError("--columns: is for --csv=FILE; run directories name their own")
        return scaling.from_runs(paths, _N.value, _BY.value or "group")
    if paths:
        raise ConfigError(f"--csv={_CSV.value}: give run directories or a CSV, not both")
    if _BY.value not in ("", "group"):
        raise ConfigError(f"--by={_BY.value}: a CSV's groups are its column --columns=group=NAME")
    columns = scaling.parse_columns(_COLUMNS.value)
    return scaling.read_csv(_CSV.value, columns, _law().response)


def _law() -> scaling.Law:
    return scaling.make_law(_LAW.value, _X.value, _PIN.value)


def _question() -> scaling.Question:
    try:
        budgets = tuple(float(budget) for budget in _BUDGETS.value)
    except ValueError:
        raise ConfigError(f"--budgets={','.join(_BUDGETS.value)}: must be numbers") from None
    if not all(0 < budget < math.inf for budget in budgets):
        raise ConfigError(f"--budgets={','.join(_BUDGETS.value)}: must be above 0")
    options = scaling.Options(
        method=_METHOD.value,
        delta=_DELTA.value,
        bootstrap=_BOOTSTRAP.value,
        cluster=_CLUSTER.value,
        replicates=_REPLICATES.value,
        seed=_SEED.value,
    )
    return scaling.Question(_law(), options, bool(_BY.value), _BASELINE.value, budgets)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return list(flags.FLAGS(list(argv)))
    except flags.Error as error:
        _end(f"error: {str(error).splitlines()[0]}", EXIT_USAGE)


def _end(line: str, code: int) -> NoReturn:
    print(line, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
