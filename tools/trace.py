"""Traces: what a model does with each token of a text; docs/traces.md describes the files.

usage:
  python -m tools.trace --run=DIR [--corpus=SPEC] [--step=N|all] [--tokens=N] [--probs] [--out=DIR]
  python -m tools.trace import --format=array|jsonl --file=PATTERN --out=DIR [--experts=E]

The first restores a checkpoint and runs it over a text; the second turns the router traces of other
systems into a directory that the report reads like a run (it needs no JAX).

examples:
  python -m tools.trace --run=runs/quickstart/top_p
  python -m tools.trace --run=runs/quickstart/top_p --corpus=embedded --step=all
  python -m tools.trace import --format=array --file='routed/*.npy' --experts=64 --out=runs/olmoe
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from moejax.analysis.traces.importers import import_arrays, import_jsonl, write_imported
from moejax.config import ConfigError, nearest

_RUN = flags.DEFINE_string("run", "", "Run directory whose checkpoint is traced.")
_CORPUS = flags.DEFINE_string(
    "corpus",
    "",
    "Text: `validation` (the default: the windows that the trainer evaluates), an evaluation set, "
    "or a corpus (embedded, files:PATTERN, tfds:NAME). Of an import: a name for the text.",
)
_STEP = flags.DEFINE_string(
    "step", "", "Checkpoint; `all` for all that are kept; default: the newest whole one."
)
_TOKENS = flags.DEFINE_integer("tokens", 16384, "Tokens traced at most.")
_PROBS = flags.DEFINE_bool("probs", False, "Also keep the probability of every expert.")
_SLOTS = flags.DEFINE_integer(
    "slots", 0, "Count this many of a token's experts, best first; the model uses all. 0: all."
)
_DEVICES = flags.DEFINE_integer("devices", 1, "Devices that the parameters are spread over.")
_IMPORT = flags.DEFINE_multi_string(
    "import", [], "Your own .py file or module that registers components; may be repeated."
)
_OUT = flags.DEFINE_string("out", "", "Folder to write to; default: RUN/trace/CORPUS.")
_FORMAT = flags.DEFINE_string("format", "", "Of an import: array or jsonl.")
_FILE = flags.DEFINE_multi_string("file", [], "Of an import: file or pattern; may be repeated.")
_EXPERTS = flags.DEFINE_integer("experts", 0, "Of an import: experts of a layer; 0: as they occur.")

FORMATS = ("array", "jsonl")


def main(argv: list[str]) -> None:
    """Traces a run."""
    del argv
    # Here, because an import of traces needs none of it.
    from moejax.probe import TraceOptions, open_run, open_text, write_traces
    from moejax.probe.corpus import VALIDATION
    from moejax.probe.opened import run_steps
    from moejax.train.cli import enable_compile_cache

    if not _RUN.value:
        raise ConfigError("--run: is required, e.g. --run=runs/quickstart/top_p")
    run = open_run(_RUN.value, devices=_DEVICES.value)
    enable_compile_cache(run.experiment.data.cache_path / "xla")
    write_traces(
        run,
        open_text(run, _CORPUS.value or VALIDATION),
        run_steps(run, _STEP.value),
        TraceOptions(tokens=_TOKENS.value, probs=_PROBS.value, slots=_SLOTS.value),
        Path(_OUT.value) if _OUT.value else None,
        lambda line: print(line, flush=True),
    )


def import_main(argv: Sequence[str]) -> None:
    """Imports what another system has written."""
    try:
        if len(argv) > 1:
            raise ConfigError(f"{argv[1]}: unexpected argument; flags are --name=value")
        if _FORMAT.value not in FORMATS:
            hint = nearest(_FORMAT.value, FORMATS)
            raise ConfigError(f"--format={_FORMAT.value!r}: one of {', '.join(FORMATS)}{hint}")
        if not _OUT.value:
            raise ConfigError("--out: is required, e.g. --out=runs/imported")
        experts = _EXPERTS.value or None
        if _FORMAT.value == "array":
            imported = import_arrays(_files(), experts=experts, step=_step() or 0)
        else:
            imported = import_jsonl(_files(), experts=experts, step=_step())
        path = write_imported(_OUT.value, imported, _CORPUS.value or "imported")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for note in imported.notes:
        print(f"note: {note}", file=sys.stderr)
    trace = imported.trace
    print(f"{path}: {trace.num_tokens:,} tokens, {trace.num_layers} MoE layers")


def _step() -> int | None:
    value = _STEP.value
    if value and not (value.isdecimal() and len(value) < 19):
        raise ConfigError(f"--step={value!r}: must be a whole number; nearest valid value 0")
    return int(value) if value else None


def _files() -> list[str]:
    if not _FILE.value:
        raise ConfigError("--file: is required, e.g. --file='traces/router_trace_rank*.jsonl'")
    found: list[str] = []
    for pattern in _FILE.value:
        matches = sorted(glob.glob(pattern, recursive=True)) or [pattern]
        if matches == [pattern] and not Path(pattern).is_file():
            parent = Path(pattern).parent
            names = [p.name for p in parent.iterdir()] if parent.is_dir() else []
            hint = nearest(Path(pattern).name, names)
            raise ConfigError(f"--file={pattern}: no such file{hint}")
        found += matches
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["import"]:
        del sys.argv[1]
        app.run(import_main)
    else:
        from moejax.train.cli import launch

        launch(main)
