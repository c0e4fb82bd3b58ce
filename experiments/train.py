"""Train one model in one run directory.

usage:
  python -m experiments.train --config=FILE[:ARGUMENTS] --workdir=DIR [--config.KEY=VALUE ...]

examples:
  python -m experiments.train --config=configs/lm.py:size=nano,moe=top_p --workdir=runs/top_p
  python -m experiments.train --config=configs/lm.py:size=nano,moe=top_p,quick \\
      --config.model.moe.router.p=0.3 --config.train.steps='2e6 tokens' --workdir=runs/p3
  python -m experiments.train --config=configs/lm.py:moe=dense --show
  python -m experiments.train --import=my_router.py --config=my_config.py --workdir=runs/mine

The same command resumes a run that was interrupted, and leaves a finished one alone; without
--config it is the config of the run in --workdir: so one goes on from what tools.convert has made.
Several processes of one run: the same command in each, which finds Slurm, GKE, TPU VMs and MPI by
itself; elsewhere also --coordinator=HOST:PORT --processes=N --process=I. See docs/cluster.md.

Exit codes: 0 done, 1 bug (traceback), 2 wrong use, 3 non-finite loss, 4 storage, 5 a process is
missing, 130 SIGINT and 143 SIGTERM (state saved). See docs/training.md.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jax
from absl import flags
from ml_collections.config_flags import config_flags

from moejax.config import ConfigError, build, read_json
from moejax.train import Experiment, run
from moejax.train.cli import enable_compile_cache, launch
from moejax.train.knob_table import knob_table
from moejax.train.process_flags import define_process_flags, start_processes
from moejax.train.profile import parse_steps
from moejax.train.progress import Progress, make_progress
from moejax.train.rundir import check_format

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Python file with get_config(arguments); single keys as --config.KEY=VALUE."
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Run directory; made if absent, resumed if begun.")
_IMPORT = flags.DEFINE_multi_string(
    "import", [], "Your own .py file or module that registers components; may be repeated."
)
_PROFILE = flags.DEFINE_string(
    "profile", "", "FIRST:LAST, e.g. 10:15: write an xprof trace of these steps to DIR/profile."
)
_SHOW = flags.DEFINE_bool(
    "show", False, "Print every knob of the resolved config with its meaning, and train nothing."
)
define_process_flags()


def main(argv: list[str]) -> None:
    """Builds the experiment from the flags and runs it."""
    del argv
    experiment = _of_workdir() if _CONFIG.value is None else build(Experiment, _CONFIG.value)
    if _SHOW.value:
        print(knob_table(experiment))
        return
    profile = parse_steps(_PROFILE.value)
    if not _WORKDIR.value:
        raise ConfigError("--workdir: is required, e.g. --workdir=runs/first")
    start_processes()
    enable_compile_cache(experiment.data.cache_path / "xla")
    first = jax.process_index() == 0
    progress = make_progress(experiment.log.console_seconds) if first else Progress()
    try:
        workdir = os.path.expanduser(_WORKDIR.value)
        result = run(experiment, workdir, progress=progress, profile=profile, argv=sys.argv)
    finally:
        progress.close()
    if not first:
        return
    scores = result.final["eval"]
    was = "was done already" if result.already_done else "done"
    print(
        f"{was}: {result.final['step']} steps, {result.final['tokens']} tokens, validation loss "
        f"{scores['loss']:.4f} nats/token, {scores['bits_per_byte']:.4f} bits/byte: "
        f"{Path(result.workdir).resolve()}"
    )


def _of_workdir() -> Experiment:
    """The experiment of the run that is there; JSON, so nothing of a directory is executed."""
    path = Path(os.path.expanduser(_WORKDIR.value)) / "config.json"
    if not _WORKDIR.value or not path.is_file():
        raise ConfigError("--config: is required, e.g. --config=configs/lm.py:size=nano,moe=top_p")
    record = read_json(path)
    check_format(path, record)
    return build(Experiment, record.get("config"))


if __name__ == "__main__":
    launch(main)
