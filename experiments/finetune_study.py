"""Compare ways to fine-tune: methods x tasks x seeds from one or more bases, in one report.

usage:
  python -m experiments.finetune_study --base=RUN [--base=RUN ...] --out=DIR [--grid=finetune]
      [--tasks=law,code] [--methods=full,lora,esft_gate] [--seeds=0,1] [--set=KEY=VALUE ...]
      [--generate=N] [--quick] [--plan]

examples:
  python -m experiments.finetune_study --base=runs/base --out=runs/comparison --plan
  python -m experiments.finetune_study --base=runs/base --out=runs/comparison
  python -m experiments.finetune_study --base=runs/m1 --base=runs/m4 --out=runs/comparison \\
      --tasks=law,code --set=train.steps=400

Scores each base and its experts on each task, selects, trains, scores what was trained, and writes
DIR/report/report.html. Every part is an ordinary command of this repository (--plan prints them).
Kill it whenever you like: the same command goes on, and parts that are done are left alone. A part
that fails ends only what needs it. --grid is a file with get_comparison, or a name in
configs/grids/; the other flags replace parts of it. See docs/finetuning_report.md.

Exit codes: 0 all is done, 2 wrong use, 6 a part failed, 128 + a signal's number.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from absl import flags

from moejax.config import ConfigError
from moejax.data.tasks import open_task
from moejax.grid.exits import EXIT_DONE, EXIT_FAILED
from moejax.grid.finetuning import (
    Comparison,
    Places,
    Treatment,
    load_comparison,
    parts_of,
    run_parts,
)
from moejax.train.cli import launch
from moejax.train.errors import StorageError
from moejax.train.lock import RunLock
from moejax.train.rundir import storage_reason

_BASE = flags.DEFINE_multi_string("base", [], "Run directory to start from; may be repeated.")
_OUT = flags.DEFINE_string("out", "", "Directory of the comparison; made if absent.")
_GRID = flags.DEFINE_string("grid", "finetune", "Comparison: FILE.py[:ARGUMENT], or its name.")
_TASKS = flags.DEFINE_string("tasks", "", "Tasks with commas, instead of the grid's.")
_METHODS = flags.DEFINE_string(
    "methods", "", "Methods with commas, of the grid's or of configs/finetune.py."
)
_SEEDS = flags.DEFINE_string("seeds", "", "Seeds with commas, instead of the grid's.")
_SET = flags.DEFINE_multi_string(
    "set", [], "KEY=VALUE of the recipe for all runs, e.g. train.steps=400; may be repeated."
)
_GENERATE = flags.DEFINE_integer(
    "generate", -1, "Answers generated for exact match, of each run; default: the grid's."
)
_QUICK = flags.DEFINE_bool("quick", False, "A smoke test: runs of seconds.")
_PLAN = flags.DEFINE_bool("plan", False, "Print the commands and run nothing.")
_EVERY = flags.DEFINE_float(
    "every", 60.0, "Seconds between lines on what a long part does.", lower_bound=0.1
)


def main(argv: list[str]) -> None:
    """Runs what is missing."""
    del argv
    if not _BASE.value:
        raise ConfigError("--base: a run directory is required, e.g. --base=runs/base")
    if not _OUT.value:
        raise ConfigError("--out: a directory is required, e.g. --out=runs/comparison")
    out = Path(_OUT.value).expanduser()
    bases = [Path(base).expanduser() for base in _BASE.value]
    quick = "quick=true" if _QUICK.value else ""
    places = Places(out)
    comparison = _changed(load_comparison(_GRID.value))
    parts = parts_of(comparison, bases, out, quick)
    for task in comparison.tasks:
        open_task(task).fingerprint()  # a package that is absent: before the work, not in it
    if _PLAN.value:
        for part in parts:
            print(shlex.join(["python", *part.command]))
        return
    try:
        places.runs.mkdir(parents=True, exist_ok=True)
        with RunLock(out):
            outcome = run_parts(parts, places, _say, _EVERY.value)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"--out={out}: a file is in the way; choose another --out") from None
    except OSError as error:
        raise StorageError(storage_reason(error, out)) from error
    if outcome.stopped:
        _say("stopped; the same command goes on")
        sys.exit(128 + outcome.stopped)
    for name, reason in outcome.failed.items():
        _say(f"failed: {name}: {reason}")
    for name in outcome.skipped:
        _say(f"not run: {name}: needs what failed")
    _say(f"{outcome.done} of {len(parts)} parts are done: {places.report.resolve()}")
    sys.exit(EXIT_FAILED if outcome.failed else EXIT_DONE)


def _changed(comparison: Comparison) -> Comparison:
    """With what the flags replace."""
    changes: dict[str, Any] = {}
    if _TASKS.value:
        changes["tasks"] = tuple(_TASKS.value.split(","))
    if _METHODS.value:
        changes["treatments"] = tuple(
            found
            for name in _METHODS.value.split(",")
            for found in _treatments(comparison, name.strip())
        )
    if _SEEDS.value:
        try:
            changes["seeds"] = tuple(int(seed) for seed in _SEEDS.value.split(","))
        except ValueError:
            raise ConfigError(
                f"--seeds={_SEEDS.value}: whole numbers with commas; nearest valid 0,1"
            ) from None
    if _GENERATE.value >= 0:
        changes["generate"] = _GENERATE.value
    if _SET.value:
        changes["overrides"] = dict(comparison.overrides) | dict(map(_setting, _SET.value))
    return dataclasses.replace(comparison, **changes)


def _treatments(comparison: Comparison, name: str) -> list[Treatment]:
    """Those of the comparison with this label or method, else the method by itself."""
    found = [one for one in comparison.treatments if name in (one.label, one.method)]
    return found or [Treatment(name)]


def _setting(given: str) -> tuple[str, Any]:
    key, equals, value = given.partition("=")
    key = key.removeprefix("config.")
    if not equals or not key:
        raise ConfigError(f"--set={given}: KEY=VALUE is wanted, e.g. --set=train.steps=400")
    if key in ("seed", "method", "task", "match", "p"):
        raise ConfigError(f"--set={given}: {key} is what the comparison varies; see --help")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    launch(main)
