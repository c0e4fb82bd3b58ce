"""Plan, run and compare a grid of runs.

usage:
  python -m experiments.grid [COMMAND] --grid=GRID --root=DIR [flags]

commands:
  plan    (default) cells, sizes, FLOPs, time, memory and disk; touches no device, writes nothing
  run     what is missing: each cell an ordinary experiments.train in a directory of its own
  status  what every cell is doing, from files alone
  retry   run, for the cells that failed
  best    groups of cells by a metric: mean and interval over seeds, paired differences
  table   the same as Markdown, LaTeX or CSV
  diff    A B: config, environment and code of two cells or run directories

examples:
  python -m experiments.grid --grid=smoke
  python -m experiments.grid run --grid=smoke --root=runs/smoke
  python -m experiments.grid best --root=runs/smoke --by=eval/loss --group=moe
  python -m experiments.grid table --root=runs/smoke --format=latex

GRID is a file with get_grid (or get_hyper), or a name in configs/grids/. --max-parallel and
--max_parallel are the same flag. See docs/grids.md.

Exit codes: 0 all is well, 1 bug (traceback), 2 wrong use or a plan that cannot fit; those of `run`
are in docs/grids.md.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import signal
import sys
from typing import Any

from absl import flags

from moejax.config import ConfigError
from moejax.grid.arguments import Arguments
from moejax.grid.words import split_words
from moejax.train.cli import launch

flags.DEFINE_string("grid", "", "FILE.py[:ARGUMENTS] with get_grid, or a shipped name.")
flags.DEFINE_string("root", "", "Directory of the grid; cells are directories in it.")
flags.DEFINE_multi_string(
    "import", [], "Your own .py file or module that registers components; may be repeated."
)
flags.DEFINE_bool("json", False, "Print JSON for programs instead of text.")
flags.DEFINE_multi_string("filter", [], "AXIS=LABEL[|LABEL]: only these cells; may be repeated.")
flags.DEFINE_string("chip", "", "plan: a machine by name, e.g. v5e:4x4; default: this machine.")
flags.DEFINE_integer("limit", 40, "plan: most cells to print; 0: all.", lower_bound=0)
flags.DEFINE_string("by", "eval/loss", "best, table: metric or metrics, with commas.")
flags.DEFINE_string("group", "", "best, table: axes to group by; default: all.")
_AGG = flags.DEFINE_string(
    "agg", "mean±ci", "best, table: mean±ci, mean±sd, median, min or max over seeds."
)
flags.DEFINE_string("format", "markdown", "table: markdown, latex or csv.")
flags.DEFINE_bool("retry_failed", False, "run: failed cells as well.")
flags.DEFINE_bool("rerun", False, "run: finished cells as well, in fresh directories.")
flags.DEFINE_integer(
    "max_parallel", 0, "run: cells at a time; 0: what cores and accelerators allow.", lower_bound=0
)
flags.DEFINE_string("shard", "", "run: I/N, the I-th of N parts of the cells.")
_FAIL_FAST = flags.DEFINE_bool("fail_fast", False, "run: start nothing new after a failure.")
_KEEP_GOING = flags.DEFINE_bool("keep_going", False, "run: the opposite, and the default.")
flags.DEFINE_float(
    "timeout", 0.0, "run: seconds for one attempt at a cell; 0: none.", lower_bound=0.0
)
flags.DEFINE_string(
    "launcher", "local", "run: local, slurm; only print how: print, kubernetes, tpu."
)
flags.DEFINE_float("watch", 0.0, "status: print again every so many seconds.", lower_bound=0.0)
flags.DEFINE_float(
    "every", 10.0, "run: seconds between lines where no terminal is.", lower_bound=0.0
)
flags.DEFINE_bool("wait", True, "run: until all has ended; --nowait: leave it to Slurm.")
flags.DEFINE_string(
    "accelerators", "", "local: KIND:LIST, one for each cell, e.g. cuda:0,1 or tpu:0,1,2,3."
)
flags.DEFINE_multi_string("slurm", [], "slurm: NAME=VALUE of sbatch; may be repeated.")
flags.DEFINE_string("image", "", "kubernetes: container image with the checkout.")
flags.DEFINE_string("topology", "", "kubernetes, tpu: slice of a cell, e.g. v5e:4x4.")
flags.DEFINE_integer("slices", 1, "kubernetes: slices of a cell.")
flags.DEFINE_string("queue", "", "kubernetes: Kueue's local queue.")
flags.DEFINE_string("volume", "", "kubernetes: volume claim, mounted at /volume.")
flags.DEFINE_multi_string("env", [], "kubernetes: NAME=VALUE; may be repeated.")
flags.DEFINE_string("zone", "", "tpu: Google Cloud's zone.")
flags.DEFINE_string(
    "remote_root", "", "kubernetes, tpu: the root over there, /volume/... or gs://..."
)


FLAG_OF = {"imports": "import"}
"""Attributes of `Arguments` that Python could not name like their flag."""


def arguments(names: tuple[str, ...]) -> Arguments:
    """The parsed flags."""
    if _FAIL_FAST.value and _KEEP_GOING.value:
        raise ConfigError("--fail-fast: contradicts --keep-going; give one of them")
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Arguments):
        if field.name != "names":
            value = flags.FLAGS[FLAG_OF.get(field.name, field.name)].value
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return Arguments(names, **values | {"agg": _AGG.value.replace("+-", "±")})


if __name__ == "__main__":
    try:
        _command, _names, sys.argv = split_words(sys.argv, flags.FLAGS)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    _module = importlib.import_module(f"moejax.grid.commands.{_command}")

    def main(argv: list[str]) -> None:
        """Runs the command; its exit code is the program's."""
        del argv
        try:
            code = _module.main(arguments(_names))
            sys.stdout.flush()
        except BrokenPipeError:  # `plan | head` has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 128 + signal.SIGPIPE
        sys.exit(code)

    launch(main)
