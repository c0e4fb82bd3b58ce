"""Fine-tune a trained model on a task, whole or in part, in one run directory.

usage:
  python -m experiments.finetune --config=configs/finetune.py:method=METHOD,task=TASK --init=RUN
      [--workdir=DIR] [--selection=expert_config.json] [--step=N] [--config.KEY=VALUE ...]

examples:
  python -m experiments.finetune --config=configs/finetune.py:method=esft_gate,task=law \\
      --init=runs/base
  python -m experiments.finetune --config=configs/finetune.py:method=esft_gate,task=law \\
      --init=runs/base --selection=law.json --workdir=runs/law
  python -m experiments.finetune --config=configs/finetune.py:method=lora,task=law,match=runs/law \\
      --init=runs/base --config.seed=1
  python -m experiments.finetune --workdir=runs/law

The run directory (default: INIT-METHOD-TASK-SEED beside the base) is one of experiments.train: the
same command resumes it, and so does --workdir alone. ESFT without --selection scores the base on
the task first and writes scores and selection into DIR/esft/TASK. At the end DIR/adapter holds what
was trained. Several processes and exit codes: as experiments.train. See docs/finetuning.md.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jax
from absl import flags
from ml_collections.config_flags import config_flags

from moejax.config import ConfigError, build
from moejax.finetune.base import Base, open_base
from moejax.finetune.recipe import Recipe, experiment_of
from moejax.finetune.selecting import selection_for
from moejax.train import Experiment, run, rundir
from moejax.train.base import experiment_at
from moejax.train.cli import enable_compile_cache, launch
from moejax.train.knob_table import knob_table
from moejax.train.process_flags import define_process_flags, start_processes
from moejax.train.progress import Progress, make_progress
from moejax.train.votes import on_first

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "configs/finetune.py:ARGUMENTS; single keys as --config.KEY=VALUE."
)
_INIT = flags.DEFINE_string("init", "", "Run directory of the base.")
_STEP = flags.DEFINE_integer(
    "step", -1, "Checkpoint of the base; default: the newest, of a fine-tuned base its best."
)
_SELECTION = flags.DEFINE_string(
    "selection", "", "Experts to train (expert_config JSON, as tools.esft select writes it)."
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Run directory; made if absent, resumed if begun.")
_IMPORT = flags.DEFINE_multi_string(
    "import", [], "Your own .py file or module that registers components; may be repeated."
)
_SHOW = flags.DEFINE_bool(
    "show", False, "Print every knob of the resolved config with its meaning, and train nothing."
)
define_process_flags()


def main(argv: list[str]) -> None:
    """Builds the experiment from base and recipe and runs it."""
    del argv
    if _CONFIG.value is None and not _WORKDIR.value:
        raise ConfigError("--config: is required, e.g. configs/finetune.py:method=lora,task=law")
    if _CONFIG.value is not None and not _INIT.value:
        raise ConfigError("--init: the run directory of the base is required, e.g. runs/base")
    recipe = None if _CONFIG.value is None else build(Recipe, _CONFIG.value)
    start_processes()
    first = jax.process_index() == 0
    if recipe is None:
        workdir = Path(os.path.expanduser(_WORKDIR.value))
        experiment = _begun(workdir)
    else:
        base = open_base(
            Path(os.path.expanduser(_INIT.value)), None if _STEP.value < 0 else _STEP.value
        )
        workdir = (
            Path(os.path.expanduser(_WORKDIR.value)) if _WORKDIR.value else _beside(base, recipe)
        )
        enable_compile_cache(base.experiment.data.cache_path / "xla")
        on_first(lambda: str(rundir.claim(workdir).root))
        selection, say = None, print if first else _silent
        if recipe.selects or _SELECTION.value:
            selection = selection_for(recipe, base, workdir, _SELECTION.value, say)
        experiment = experiment_of(recipe, base, selection, say)
    if _SHOW.value:
        if first:
            print(knob_table(experiment))
        return
    enable_compile_cache(experiment.data.cache_path / "xla")
    progress = make_progress(experiment.log.console_seconds) if first else Progress()
    try:
        result = run(experiment, workdir, progress=progress, argv=sys.argv)
    finally:
        progress.close()
    if not first:
        return
    found = result.final["finetune"]
    was = "was done already" if result.already_done else "done"
    share = found["trainable_parameters"] / found["total_parameters"]
    kept = f"step {found['best_step']} of {result.final['step']} kept"
    if found["best_loss"] is not None:
        kept += f", validation loss {found['best_loss']:.4f} nats/token"
    print(
        f"{was}: {found['trainable_parameters']} parameters trained ({share:.1%}), adapter of "
        f"{found['adapter_bytes']} bytes, {kept}: {Path(result.workdir).resolve()}"
    )


def _begun(workdir: Path) -> Experiment:
    """The experiment of the run that is there."""
    experiment = experiment_at(workdir)
    if experiment.finetune is None:
        raise ConfigError(
            f"{workdir}: is no fine-tuning; python -m experiments.train --workdir={workdir} goes "
            "on with it, --init fine-tunes it"
        )
    return experiment


def _beside(base: Base, recipe: Recipe) -> Path:
    root = base.run.root.resolve()
    return root.with_name(f"{root.name}-{recipe.label}-s{recipe.seed}")


def _silent(text: str) -> None:
    del text


if __name__ == "__main__":
    launch(main)
