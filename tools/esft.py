"""Expert-specialised fine-tuning: which experts a task uses, and which are trained; docs/esft.md.

usage:
  python -m tools.esft score --run=DIR --task=NAME [--samples=32] [--length=4096] [--step=N]
      [--seed=0] [--weights] [--out=FILE]
  python -m tools.esft select --summary=FILE [--summary=FILE ...] --score=gate|token [--p=0.1]
      [--random --seed=N] [--group_size=2] [--shared_experts] [--non_expert_modules] [--run=DIR]
      [--out=FILE]
  python -m tools.esft overlap --summary=FILE --summary=FILE ... [--score=gate] [--p=0.1]
      [--out=FILE]
  python -m tools.esft groups --summary=FILE

`score` runs a checkpoint over the training split of a task and writes
RUN/esft/TASK/{summary,analysis}.json; the others read summaries, ours or those of deepseek-ai/ESFT.
`select` writes the expert config that a fine-tuning takes as --selection; with --run it is checked
against that run's model. `groups` prints what selecting experts in groups would need.

examples:
  python -m tools.esft score --run=runs/base --task=law
  python -m tools.esft select --summary=runs/base/esft/law/summary.json --score=gate --p=0.1
  python -m tools.esft overlap --summary=runs/base/esft/law --summary=runs/base/esft/code
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from absl import flags

from moejax.config import ConfigError, nearest, read_json, write_json
from moejax.data.tasks.example import CHAT
from moejax.finetune.esft import (
    ANALYSIS,
    OVERLAP,
    choose,
    overlap_of,
    read_summaries,
    score_run,
    selected_line,
)
from moejax.finetune.formats import write_selection
from moejax.finetune.grouping import COOCCURRENCE, COSINE, SIZES, Groups, groups_in
from moejax.finetune.sampling import Sampling, open_corpus_documents, open_task_documents
from moejax.finetune.scores import GATE, Scores, require_score
from moejax.finetune.selection import DEFAULT_P, check_selection
from moejax.finetune.tables import groups_table, overlap_table
from moejax.probe import open_run
from moejax.probe.opened import run_steps
from moejax.train.cli import enable_compile_cache, launch

_DEFAULT = Sampling()
_RUN = flags.DEFINE_string("run", "", "Run directory of the base.")
_TASK = flags.DEFINE_string("task", "", "Task, as for tools.task: its training split is scored.")
_CORPUS = flags.DEFINE_string("corpus", "", "Instead of a task: any text, as for tools.trace.")
_TEMPLATE = flags.DEFINE_string("template", CHAT, "Around prompt and answer of a task's examples.")
_SAMPLES = flags.DEFINE_integer("samples", _DEFAULT.samples, "Samples that are scored.")
_LENGTH = flags.DEFINE_integer(
    "length",
    _DEFAULT.length,
    "Tokens of a sample; beyond data.seq_len of the run there are as many more samples instead.",
)
_STEP = flags.DEFINE_string(
    "step", "", "Checkpoint; default: the newest, of a fine-tuned run the best."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the order of examples, or of --random.")
_WEIGHTS = flags.DEFINE_bool("weights", False, "Also write expert_weights_LAYER.txt (large).")
_SUMMARY = flags.DEFINE_multi_string("summary", [], "Scores: a file, or its folder.")
_SCORE = flags.DEFINE_string("score", GATE, "What experts are selected by: gate or token.")
_P = flags.DEFINE_float("p", None, f"Threshold; default {DEFAULT_P} as published.")
_RANDOM = flags.DEFINE_bool("random", False, "The control: as many experts, drawn at random.")
_GROUP_SIZE = flags.DEFINE_integer(
    "group_size", 1, "Whole groups of so many experts, from the summary's analysis.json; 1: none."
)
_GROUP_BY = flags.DEFINE_enum(
    "group_by", COOCCURRENCE, (COOCCURRENCE, COSINE), "What experts of a group have in common."
)
_SHARED = flags.DEFINE_bool("shared_experts", False, "Also train the shared experts.")
_OTHERS = flags.DEFINE_bool("non_expert_modules", False, "Also train all that is not an expert.")
_DEVICES = flags.DEFINE_integer("devices", 1, "Devices that the parameters are spread over.")
_IMPORT = flags.DEFINE_multi_string(
    "import", [], "Your own .py file or module that registers components; may be repeated."
)
_OUT = flags.DEFINE_string("out", "", "File to write to; default: in the folder of the summary.")


def score() -> None:
    """Scores a run."""
    if not _RUN.value:
        raise ConfigError("--run: is required, e.g. --run=runs/base")
    if bool(_TASK.value) == bool(_CORPUS.value):
        raise ConfigError("--task: is required (or --corpus instead), e.g. --task=law")
    run = open_run(_RUN.value, devices=_DEVICES.value)
    enable_compile_cache(run.experiment.data.cache_path / "xla")
    if _STEP.value == "all":
        raise ConfigError("--step=all: one checkpoint is scored; nearest valid: no --step")
    (step,) = run_steps(run, _STEP.value)
    documents = (
        open_task_documents(run, _TASK.value, template=_TEMPLATE.value)
        if _TASK.value
        else open_corpus_documents(run, _CORPUS.value)
    )
    score_run(
        run,
        run.restore(step, _say),
        documents,
        Sampling(_SAMPLES.value, _LENGTH.value, _SEED.value),
        Path(_OUT.value) if _OUT.value else None,
        _say,
        _WEIGHTS.value,
    )


def select() -> None:
    """Selects experts."""
    several = read_summaries(_SUMMARY.value)
    seed = _SEED.value if _RANDOM.value else None
    if _SEED.present and not _RANDOM.value:
        raise ConfigError("--seed: a choice by scores draws nothing; nearest valid: with --random")
    p = _threshold()
    chosen = choose(
        list(several.values()),
        _SCORE.value,
        p,
        seed,
        _SHARED.value,
        _OTHERS.value,
        _groups(several),
    )
    if _RUN.value:
        run = open_run(_RUN.value, devices=_DEVICES.value)
        origin = chosen.origin
        scored = origin.step if origin.base_hash and origin.step in run.steps() else None
        result = run.result()
        newest = result if result in run.steps() else run.steps()[-1]
        here = run.params_hash(newest if scored is None else scored)
        check_selection(chosen, run.model, here, "--summary")
    words = ["expert_config", _SCORE.value, f"{p:g}", *([f"random{seed}"] if _RANDOM.value else [])]
    words += [f"groups{_GROUP_SIZE.value}"] if _GROUP_SIZE.value > 1 else []
    path = _out("_".join(words) + ".json" if len(several) == 1 else "")
    write_selection(path, chosen)
    _say(selected_line(path, chosen, [one.of(_SCORE.value) for one in several.values()]))


def overlap() -> None:
    """Compares the experts of tasks."""
    found = overlap_of(read_summaries(_SUMMARY.value), _SCORE.value, _threshold())
    path = Path(_OUT.value) if _OUT.value else _folder().parent / OVERLAP
    write_json(path, found)
    _say(overlap_table(found))
    _say(str(path))


def groups() -> None:
    """Prints the grouping analysis of a summary's folder."""
    read_summaries(_SUMMARY.value)
    _say(groups_table(_folder() / ANALYSIS, read_json(_folder() / ANALYSIS)))


_COMMON = ("import", "devices", "out")
COMMANDS: dict[str, tuple[Callable[[], None], tuple[str, ...]]] = {
    "score": (
        score,
        (
            *("run", "task", "corpus", "template", "samples", "length", "step", "seed"),
            *("weights", *_COMMON),
        ),
    ),
    "select": (
        select,
        (
            *("summary", "score", "p", "random", "seed", "run", "group_size", "group_by"),
            *("shared_experts", "non_expert_modules", *_COMMON),
        ),
    ),
    "overlap": (overlap, ("summary", "score", "p", "out")),
    "groups": (groups, ("summary",)),
}
"""What each command runs, and the flags that it takes."""

COMMAND = ""


def main(argv: list[str]) -> None:
    """Runs the command that was named."""
    del argv
    if COMMAND not in COMMANDS:
        hint = nearest(COMMAND, COMMANDS)
        raise ConfigError(f"{COMMAND or 'no command'}: known: {', '.join(COMMANDS)}{hint}")
    run, takes = COMMANDS[COMMAND]
    ours = {name for _, names in COMMANDS.values() for name in names}
    given = sorted(name for name in ours - set(takes) if flags.FLAGS[name].present)
    if given:
        raise ConfigError(
            f"--{given[0]}: {COMMAND} has no such flag{nearest(given[0], takes)}; it takes "
            f"{', '.join(takes)}"
        )
    run()


def _threshold() -> float:
    require_score(_SCORE.value)
    if _P.value is None:
        return DEFAULT_P[_SCORE.value]
    if not 0.0 < _P.value <= 1.0:
        near = 1.0 if _P.value > 1.0 else DEFAULT_P[_SCORE.value]
        raise ConfigError(f"--p={_P.value}: a share above 0, at most 1; nearest valid value {near}")
    return float(_P.value)


def _groups(several: Mapping[str, Scores]) -> dict[int, Groups] | None:
    """What --group_size and --group_by ask for."""
    size = _GROUP_SIZE.value
    if size == 1:
        if _GROUP_BY.present:
            raise ConfigError("--group_by: needs --group_size; nearest valid --group_size=2")
        return None
    if size not in SIZES:
        near = min(SIZES, key=lambda one: abs(one - size))
        raise ConfigError(f"--group_size={size}: groups are of 2 or 4; nearest valid value {near}")
    if len(several) > 1:
        raise ConfigError("--group_size: experts are grouped for one task; give one --summary")
    (scores,) = several.values()
    path = _folder() / ANALYSIS
    return groups_in(path, read_json(path), scores.of(_SCORE.value), _GROUP_BY.value, size)


def _folder() -> Path:
    first = Path(_SUMMARY.value[0])
    return first if first.is_dir() else first.parent


def _out(name: str) -> Path:
    if _OUT.value:
        return Path(_OUT.value)
    if not name:
        raise ConfigError("--out: is required for several tasks, e.g. --out=expert_config.json")
    return _folder() / name


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        COMMAND = sys.argv.pop(1)
    launch(main)
