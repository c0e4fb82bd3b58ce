"""What the surgeries' commands share: their flags, the run that is read, what is printed."""

from __future__ import annotations

import dataclasses
from typing import Any

from absl import flags

from moejax.config import ConfigError
from moejax.probe import OpenedRun, open_run
from moejax.probe.opened import Restored, run_steps
from moejax.surgery.layers import Tree
from moejax.surgery.rundir import Agreement, numpy_tree
from moejax.train.cli import enable_compile_cache
from moejax.train.newrun import require_empty
from tools.conversions import value


def define_common() -> None:
    """Flags that every surgery has."""
    flags.DEFINE_string("from", "", "The run directory that is read.")
    flags.DEFINE_string("to", "", "The run directory that is made.")
    flags.DEFINE_string("step", "", "Checkpoint; default: the newest whole one.")
    flags.DEFINE_integer("seed", 0, "Of everything that is drawn.", lower_bound=0)
    flags.DEFINE_multi_string(
        "set", [], "KEY=VALUE of the new run's config, e.g. train.steps=2000; may be repeated."
    )
    flags.DEFINE_multi_string(
        "import", [], "Your own .py file or module that registers components; may be repeated."
    )


def asked_for(cls: type, **names: str) -> Any:
    """A dataclass of options from the flags of the same names (or of those in `names`)."""
    fields = {field.name: names.get(field.name, field.name) for field in dataclasses.fields(cls)}
    return cls(**{name: value(flag) for name, flag in fields.items()})


def open_source() -> tuple[OpenedRun, Restored, Tree]:
    """The run that is read, its checkpoint, and `{params, router_state}` as NumPy arrays.

    Raises:
      ConfigError: no such run or checkpoint, or `--to` is not empty.
    """
    require_empty(value("to"))
    run = open_run(value("from"))
    enable_compile_cache(run.experiment.data.cache_path / "xla")
    step = single_step(run, value("step"))
    restored = run.restore(step)
    tree = {"params": restored.params, "router_state": restored.router_state}
    return run, restored, numpy_tree(tree)


def single_step(run: OpenedRun, wanted: str) -> int | None:
    """The checkpoint that `--step` names; None: the newest whole one."""
    if wanted == "all":
        raise ConfigError("--step=all: one checkpoint is taken; nearest valid: no --step")
    (step,) = run_steps(run, wanted)
    return step


def compared(what: str, found: Agreement) -> str:
    """A line on how two models agree."""
    return (
        f"{what}: loss {found.loss_before:.6f} -> {found.loss_after:.6f} nats on {found.tokens} "
        f"tokens, logits differ by {found.largest:.3g} at most"
    )
