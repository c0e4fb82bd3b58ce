"""Tasks of the Language Model Evaluation Harness on a checkpoint; docs/lm_eval.md.

usage:
  python -m tools.lm_eval --run=DIR --tasks=NAME,... [--include_path=DIR] [--batch_size=N]
      [--num_fewshot=N] [--limit=N] [--out=FILE] [--samples]

Needs the extra `lm-eval`. Nothing is fetched: tasks and their data are files of this machine.

examples:
  python -m tools.lm_eval --run=runs/quickstart/top_k --include_path=examples/lm_eval \\
      --tasks=moejax_opposites,moejax_copies,moejax_lines
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from absl import flags

from moejax.config import ConfigError, nearest, write_json
from moejax.probe.writer import open_writer
from moejax.train.cli import enable_compile_cache, launch

_RUN = flags.DEFINE_string("run", "", "Run directory whose checkpoint is evaluated.")
_TASKS = flags.DEFINE_list("tasks", [], "Names of tasks or groups, comma-separated.")
_INCLUDE = flags.DEFINE_string("include_path", "", "Folder with task files of your own.")
_BATCH = flags.DEFINE_integer("batch_size", 8, "Texts at once; changes no number.")
_MAX_LENGTH = flags.DEFINE_integer(
    "max_length", 0, "Tokens that the model reads at once; 0: as many as it was trained on."
)
_FEWSHOT = flags.DEFINE_integer("num_fewshot", -1, "Examples before each question; -1: the task's.")
_LIMIT = flags.DEFINE_integer("limit", 0, "Only so many documents of each task; 0: all.")
_SEED = flags.DEFINE_integer("seed", 0, "Of sampled texts and of few-shot examples.")
_OUT = flags.DEFINE_string("out", "", "JSON file for the results; default: RUN/lm_eval/STEP.json.")
_SAMPLES = flags.DEFINE_bool("samples", False, "Keep every question and answer in the file.")
_CACHE = flags.DEFINE_string(
    "cache", "", "File that answers are kept in, so that an interrupted evaluation goes on."
)
_STEP = flags.DEFINE_string("step", "", "Checkpoint; default: the newest whole one.")
_LIFT = flags.DEFINE_bool("lift_capacity", False, "No expert turns a token away.")
_IMPORT = flags.DEFINE_multi_string(
    "import", [], "Your own .py file or module that registers components; may be repeated."
)

FORMAT_VERSION = 1
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_EVALUATE_OFFLINE")


def main(argv: list[str]) -> None:
    """Evaluates a run."""
    del argv
    check_flags()
    for name in OFFLINE:  # read when the packages are imported
        os.environ.setdefault(name, "1")
    # Here, because everything else of this program should work without the extra.
    from moejax.interop.harness.adapter import MoejaxLM

    manager = task_manager(_TASKS.value, _INCLUDE.value)
    step = int(_STEP.value) if _STEP.value else None
    writer = open_writer(_RUN.value, step=step, lift_capacity=_LIFT.value, say=_note)
    enable_compile_cache(writer.run.experiment.data.cache_path / "xla")
    model = MoejaxLM(
        writer,
        batch_size=_BATCH.value,
        max_length=_MAX_LENGTH.value,
        seed=_SEED.value,
        progress=_progress if sys.stderr.isatty() else None,
    )
    from lm_eval import simple_evaluate
    from lm_eval.utils import make_table

    results = simple_evaluate(
        model,
        tasks=list(_TASKS.value),
        task_manager=manager,
        num_fewshot=None if _FEWSHOT.value < 0 else _FEWSHOT.value,
        limit=_LIMIT.value or None,
        use_cache=_CACHE.value or None,
        log_samples=_SAMPLES.value,
        random_seed=_SEED.value,
        numpy_random_seed=_SEED.value,
        torch_random_seed=None,
        fewshot_random_seed=_SEED.value,
    )
    path = Path(_OUT.value) if _OUT.value else writer.run.root / "lm_eval" / f"{writer.step}.json"
    write_json(path, record(results, writer.step, model.max_length))
    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
    print(path)


def check_flags() -> None:
    """Raises ConfigError for what is wrong whatever the run."""
    if not _RUN.value:
        raise ConfigError("--run: is required, e.g. --run=runs/quickstart/top_k")
    if not _TASKS.value:
        raise ConfigError("--tasks: is required, e.g. --tasks=moejax_opposites")
    if _INCLUDE.value and not Path(_INCLUDE.value).is_dir():
        raise ConfigError(f"--include_path={_INCLUDE.value}: no such folder")
    if _LIMIT.value < 0:
        raise ConfigError(
            f"--limit={_LIMIT.value}: must be 0 (all) or above; nearest valid value 0"
        )
    if _BATCH.value < 1:
        raise ConfigError(f"--batch_size={_BATCH.value}: must be at least 1")
    if _STEP.value and not (_STEP.value.isdecimal() and len(_STEP.value) < 19):
        raise ConfigError(f"--step={_STEP.value!r}: must be a number of steps")


def task_manager(tasks: list[str], include_path: str) -> Any:
    """The Harness's index of tasks: of your folder alone if it has all that are wanted (reading
    those that come with the package takes a while).

    Raises:
      ConfigError: a task is unknown.
    """
    from lm_eval.tasks import TaskManager

    manager = None
    if include_path:
        manager = TaskManager(include_path=include_path, include_defaults=False)
    if manager is None or not set(tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=include_path or None)
    for task in tasks:
        if task not in manager.all_tasks:
            raise ConfigError(
                f"--tasks={task}: no such task{nearest(task, manager.all_tasks)}; files of your "
                "own are found with --include_path"
            )
    return manager


def record(results: dict[str, Any], step: int, max_length: int) -> dict[str, Any]:
    """What is kept of an evaluation, as JSON."""
    import lm_eval

    kept = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better", "samples")
    found = {name: results[name] for name in kept if name in results}
    plain = json.loads(json.dumps(found, default=str, allow_nan=True), parse_constant=str)
    return plain | {
        "format_version": FORMAT_VERSION,
        "step": step,
        "max_length": max_length,
        "lm_eval": lm_eval.__version__,
        "argv": sys.orig_argv,
    }


def _progress(done: int, total: int) -> None:
    print(f"\r{done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _note(line: str) -> None:
    print(f"note: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    launch(main)
