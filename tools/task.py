"""Tasks: what is in them, and how well a checkpoint does them; docs/tasks.md.

usage:
  python -m tools.task list [--task=SPEC ...]
  python -m tools.task show --task=SPEC [--split=SPLIT] [--examples=N]
  python -m tools.task score --run=DIR [--task=SPEC ...] [--split=SPLIT] [--step=N] [--generate=N]

`list` counts examples, documents and bytes; without --task, of every task whose package is there.
`score` writes RUN/tasks/TASK.json; a run that was tuned for a task needs no --task.

examples:
  python -m tools.task show --task='translation?target=de' --examples=3
  python -m tools.task score --run=runs/base --task=law --task=mathematics
  python -m tools.task score --run=runs/law --generate=64
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from absl import flags

from moejax.config import ConfigError, nearest
from moejax.data.tasks import CHAT, SPLITS, TASKS, Task, open_task, render
from moejax.train.cli import launch
from tools.prepare import table

_RUN = flags.DEFINE_string("run", "", "Run directory whose checkpoint is scored.")
_TASK = flags.DEFINE_multi_string(
    "task",
    [],
    "A task: law, code, mathematics, translation, dialogue, reasoning or task:files:PATTERN, with "
    "?OPTION=VALUE&... behind it; may be repeated.",
)
_SPLIT = flags.DEFINE_string("split", "test", "train, validation or test.")
_EXAMPLES = flags.DEFINE_integer("examples", 5, "How many are shown.")
_STEP = flags.DEFINE_string("step", "", "Checkpoint; default: the run's result, else the newest.")
_GENERATE = flags.DEFINE_integer("generate", 0, "Also answer so many examples by generation.")
_LENGTH = flags.DEFINE_integer("length", 0, "Tokens of a window; 0: as the base was trained.")
_GENERAL = flags.DEFINE_integer("general_tokens", 65536, "Of the general text; 0: all of it.")
_TEMPLATE = flags.DEFINE_string("template", "", f"Around an example; default: {CHAT!r}.")
_BATCH = flags.DEFINE_integer("batch_size", 8, "Windows at once; changes no number.")
_OUT = flags.DEFINE_string("out", "", "File to write; default: RUN/tasks/TASK.json.")
_IMPORT = flags.DEFINE_multi_string(
    "import", [], "Your own .py file or module that registers components; may be repeated."
)

COMMANDS = ("list", "show", "score")
_HEADER = ("task", "split", "examples", "documents", "bytes of prompts", "of answers")


def counts(task: Task) -> list[tuple[str, str, int, int, int, int]]:
    """Returns a row of `list` for each split."""
    rows = []
    for split in SPLITS:
        examples = task.examples(split)
        prompts = sum(len(example.prompt.encode()) for example in examples)
        answers = sum(len(example.answer.encode()) for example in examples)
        documents = len({example.document for example in examples})
        rows.append((task.spec, split, len(examples), documents, prompts, answers))
    return rows


def list_main(argv: list[str]) -> None:
    """Prints what is in tasks."""
    del argv
    known = [name for name in TASKS.names() if not TASKS.get(name).argument_name]
    for spec in _TASK.value or known:
        start = time.monotonic()
        task = open_task(spec)
        try:
            rows = counts(task)
        except ConfigError as error:
            if _TASK.value:
                raise
            print(f"{spec}   {error}\n", file=sys.stderr, flush=True)
            continue
        sources = "; ".join(
            f"{row.get('package') or row.get('file')} {row['version']} ({row['licence']})"
            for row in {str(row): row for row in task.sources()}.values()
        )
        seconds = time.monotonic() - start
        print(
            f"{spec}   {sources}   (read in {seconds:.1f} s)\n{table(_HEADER, rows)}\n", flush=True
        )


def show_main(argv: list[str]) -> None:
    """Prints examples."""
    del argv
    if not _TASK.value:
        raise ConfigError("--task: is required, e.g. --task=law")
    for spec in _TASK.value:
        for example in open_task(spec).examples(_SPLIT.value)[: _EXAMPLES.value]:
            labels = f"{example.domain}, {example.language}"
            print(f"--- {example.id} of {example.document} ({labels})")
            print("".join(render(example, _TEMPLATE.value or CHAT)), flush=True)


def score_main(argv: list[str]) -> None:
    """Scores a run on tasks."""
    del argv
    # Here, because the other commands need no JAX.
    from moejax.probe.opened import open_run
    from moejax.probe.task_scores import ScoreOptions, score_task, write_score
    from moejax.train.cli import enable_compile_cache

    if not _RUN.value:
        raise ConfigError("--run: is required, e.g. --run=runs/law")
    if _STEP.value and not (_STEP.value.isdecimal() and len(_STEP.value) < 19):
        raise ConfigError(f"--step={_STEP.value!r}: must be a number of steps")
    options = ScoreOptions(
        split=_SPLIT.value,
        length=_LENGTH.value,
        template=_TEMPLATE.value,
        generate=_GENERATE.value,
        general_tokens=_GENERAL.value,
        batch_size=_BATCH.value,
    )
    options.validate()
    tasks = [open_task(spec) for spec in _TASK.value]
    run = open_run(_RUN.value)
    data = run.experiment.data
    if not tasks and data.general is None:
        raise ConfigError("--task: is required: the run was not tuned for a task; e.g. --task=law")
    tasks = tasks or [open_task(data.corpus)]
    if _OUT.value and len(tasks) > 1:
        raise ConfigError("--out: names one file, but there are several tasks")
    enable_compile_cache(data.cache_path / "xla")
    restored = run.restore(int(_STEP.value) if _STEP.value else None, note)
    for task in tasks:
        start = time.perf_counter()
        record = score_task(run, restored, task, options, note)
        path = write_score(run, record, task, Path(_OUT.value) if _OUT.value else None)
        answer, general = record["answer_loss"], record["general_loss"]
        exact = record["exact_match"]
        print(
            f"{path}: step {record['step']}, {record['examples']} examples of "
            f"{record['documents']} documents: {answer['mean']:.4f} nats/token, "
            f"{100 * record['answer_accuracy']:.1f} % of tokens right"
            + ("" if exact is None else f", {100 * exact:.1f} % of {record['generated']} answers")
            + f"; general text {general['mean']:.4f} nats/token "
            f"({time.perf_counter() - start:.1f} s)",
            flush=True,
        )


def note(line: str) -> None:
    """A remark, beside the results."""
    print(f"note: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    mains = dict(zip(COMMANDS, (list_main, show_main, score_main), strict=True))
    if command in mains:
        del sys.argv[1]
        launch(mains[command])
    elif command.startswith("-") and command.lstrip("-") in ("help", "h", "helpshort"):
        launch(score_main)
    else:
        hint = nearest(command, COMMANDS)
        print(f"error: {command!r}: one of {', '.join(COMMANDS)}{hint}", file=sys.stderr)
        sys.exit(2)
