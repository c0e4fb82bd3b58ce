"""Adapters of fine-tuned runs: what is in them, merging, what they changed; docs/finetuning.md.

usage:
  python -m tools.adapter info --adapter=DIR [--adapter=DIR ...] [--base=RUN]
  python -m tools.adapter merge --adapter=DIR --to=RUN [--base=RUN] [--set=KEY=VALUE ...]
  python -m tools.adapter spectrum --run=RUN [--run=RUN ...] [--base=RUN] [--out=FILE]

examples:
  python -m tools.adapter info --adapter=runs/law --adapter=runs/code --base=runs/base
  python -m tools.adapter merge --adapter=runs/law --base=runs/base --to=runs/law-merged
  python -m tools.adapter spectrum --run=runs/law-lora --run=runs/law-multilora

An adapter is a directory with adapter.json and adapter.safetensors, or a fine-tuned run, whose
`adapter/` is meant. --base is the run that it belongs to; default: where it was trained from.
`info` says of each what it trains, and with --base whether it fits. `merge` makes a run like any
other. `spectrum` writes the singular values of all that changed to RUN/adapter/spectrum.json.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from absl import flags

from moejax.config import ConfigError, nearest, write_json
from moejax.finetune.adapter import Adapter, put_on, read_adapter, require_base
from moejax.finetune.changes import deltas_of
from moejax.finetune.merge import merge
from moejax.finetune.spectrum import spectra
from moejax.probe import OpenedRun, open_run
from moejax.surgery.rundir import settings
from moejax.train.cli import enable_compile_cache, launch

SPECTRUM = "spectrum.json"

_ADAPTER = flags.DEFINE_multi_string("adapter", [], "Adapter, or fine-tuned run; may be repeated.")
_RUN = flags.DEFINE_multi_string("run", [], "Fine-tuned run; may be repeated.")
_BASE = flags.DEFINE_string("base", "", "The run that it belongs to.")
_TO = flags.DEFINE_string("to", "", "The run directory that is made.")
_SET = flags.DEFINE_multi_string(
    "set", [], "KEY=VALUE of the merged run's config, e.g. train.steps=2000; may be repeated."
)
_OUT = flags.DEFINE_string("out", "", "File of the spectrum; default: beside the adapter.")
_IMPORT = flags.DEFINE_multi_string(
    "import", [], "Your own .py file or module that registers components; may be repeated."
)

COMMAND = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""


def info() -> None:
    """Says what adapters are."""
    for adapter in _adapters(_ADAPTER.value, "--adapter"):
        record = adapter.record
        base = record["base"]
        print(
            f"{adapter.directory}: {record.get('label') or record.get('kind')}, task "
            f"{record.get('task') or 'none'}, {adapter.parameters()} parameters, "
            f"{adapter.num_bytes} bytes, step {record.get('step')}; base {adapter.base_hash} "
            f"(step {base['step']} of {base.get('run')})"
        )
        if _BASE.value:
            found = require_base(adapter, _base(adapter))
            put_on(adapter, found.model, None, found.restored)
            print(f"  fits step {found.restored.step} of {found.root}")


def merged() -> None:
    """Makes a run of a base and an adapter."""
    adapter, *others = _adapters(_ADAPTER.value, "--adapter")
    if others:
        raise ConfigError("--adapter: one is merged at a time")
    if not _TO.value:
        raise ConfigError("--to: is required: the run directory that is made")
    merge(adapter, _base(adapter), _TO.value, changes=settings(_SET.value), argv=sys.orig_argv)
    print(f"{adapter.directory} merged into its base: {Path(_TO.value).resolve()}")


def spectrum() -> None:
    """Writes the singular values of what adapters changed."""
    found = _adapters([*_RUN.value, *_ADAPTER.value], "--run")
    if _OUT.value and len(found) > 1:
        raise ConfigError("--out: is for one run; without it each has its own file")
    for adapter in found:
        base = require_base(adapter, _base(adapter))
        record = spectra(base.model, base.restored.params, deltas_of(adapter, base))
        path = Path(_OUT.value) if _OUT.value else adapter.directory / SPECTRUM
        write_json(path, record)
        shares = [one["share_top1"] for one in record["matrices"]]
        mean = f", largest singular value {sum(shares) / len(shares):.1%} of dW" if shares else ""
        print(f"{path}: {len(shares)} matrices changed{mean}")


COMMANDS: dict[str, Callable[[], None]] = {"info": info, "merge": merged, "spectrum": spectrum}


def main(argv: list[str]) -> None:
    """Runs the command that was named."""
    del argv
    if COMMAND not in COMMANDS:
        hint = nearest(COMMAND, COMMANDS)
        raise ConfigError(f"{COMMAND or 'no command'}: known: {', '.join(COMMANDS)}{hint}")
    COMMANDS[COMMAND]()


def _adapters(given: list[str], flag: str) -> list[Adapter]:
    if not given:
        raise ConfigError(f"{flag}: is required by {COMMAND}")
    return [read_adapter(place) for place in given]


def _base(adapter: Adapter) -> OpenedRun:
    place = _BASE.value or adapter.record["base"].get("run") or ""
    if not place or not Path(place).is_dir():
        raise ConfigError(
            f"{adapter.directory}: was trained from {place or 'a base it does not name'}, which is "
            "not there; say --base=RUN"
        )
    run = open_run(place)
    enable_compile_cache(run.experiment.data.cache_path / "xla")
    return run


if __name__ == "__main__":
    launch(main)
