"""Models of others in and out, and dense models made into mixtures of experts.

usage:
  python -m tools.convert COMMAND --from=... --to=... [flags]
  python -m tools.convert COMMAND --help

commands:
  import   Hugging Face directory or GGUF file -> run         docs/interop.md
  export   run -> directory that transformers opens           docs/interop.md
  verify   every tensor of a source against a run             docs/interop.md
  upcycle  dense run -> run whose FFNs are copied into experts      docs/upcycling.md
  moefy    dense run -> run whose FFNs are cut into small experts   docs/moefy.md
  prune    run with experts -> run with fewer                       docs/pruning.md
  mask     dense run -> run under learned masks -> what they leave  docs/masks.md

examples:
  python -m tools.convert import --from=SmolLM2-135M.gguf --to=runs/smollm2
  python -m tools.convert export --from=runs/top_k --to=exported --dtype=bfloat16
  python -m tools.convert upcycle --from=runs/dense --to=runs/upcycled --copies=8 --k=2
  python -m tools.convert moefy --from=runs/smollm2 --to=runs/moefied --experts=48 --router=oracle

Nothing is fetched from a network, nothing is unpickled.
"""

from __future__ import annotations

import importlib
import sys

from absl import flags

from moejax.config import ConfigError, nearest
from moejax.train.cli import launch

COMMANDS = {
    "import": ("files", "define_import", "run_import"),
    "export": ("files", "define_export", "run_export"),
    "verify": ("files", "define_verify", "run_verify"),
    "upcycle": ("upcycle", "define_flags", "run"),
    "moefy": ("moefy", "define_flags", "run"),
    "prune": ("prune", "define_flags", "run"),
    "mask": ("mask", "define_flags", "run"),
}
"""Command -> file in tools/conversions, and what it is there. Only its own flags are defined, so a
flag of another command is an error."""

COMMAND = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""


def prepare() -> None:
    """Defines the flags of the command that was named; `--help` is then about it."""
    if COMMAND not in COMMANDS:
        return
    file, define, _ = COMMANDS[COMMAND]
    module = importlib.import_module(f"tools.conversions.{file}")
    before = set(flags.FLAGS)
    getattr(module, define)()
    for name in sorted(set(flags.FLAGS) - before):
        flags.FLAGS.register_flag_by_module(sys.argv[0], flags.FLAGS[name])
    globals()["__doc__"] = module.__doc__


def main(argv: list[str]) -> None:
    """Runs the command that was named."""
    del argv
    if COMMAND not in COMMANDS:
        hint = nearest(COMMAND, COMMANDS)
        raise ConfigError(f"{COMMAND or 'no command'}: known: {', '.join(COMMANDS)}{hint}")
    for name in ("from", "to"):
        if not flags.FLAGS[name].value:
            raise ConfigError(f"--{name}: is required by {COMMAND}")
    file, _, run = COMMANDS[COMMAND]
    getattr(importlib.import_module(f"tools.conversions.{file}"), run)()


if __name__ == "__main__":
    prepare()
    launch(main)
