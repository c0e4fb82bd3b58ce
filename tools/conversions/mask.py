"""Learned masks: a dense run under masks that training closes, and what is left; docs/masks.md.

usage:
  python -m tools.convert mask --from=RUN --to=RUN [flags]             masks, and their training
  python -m tools.convert mask --from=MASKED --to=RUN --harden         the masks made real

examples:
  python -m tools.convert mask --from=runs/dense --to=runs/masked --target=0.5 --steps='2e6 tokens'
  python -m experiments.train --workdir=runs/masked
  python -m tools.convert mask --from=runs/masked --to=runs/hardened --harden

The first is the dense model at its first step, and trains at once (not with --notrain); the second
goes on after an interruption. The third puts shared experts and experts of different widths in the
place of the masks: the same outputs, at the cost of what the masks have left.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from absl import flags

from moejax.config import ConfigError, override, to_steps
from moejax.surgery.masks import Hardened, Masking, harden, masked
from moejax.surgery.rundir import agreement, settings, write_converted
from moejax.train import Experiment
from moejax.train import run as train
from moejax.train.progress import make_progress
from tools.conversions import value
from tools.conversions.common import asked_for, compared, define_common, open_source

DEFAULT = Masking()


def define_flags() -> None:
    """Flags of this command."""
    define_common()
    flags.DEFINE_bool("harden", False, "Make the masks of --from real; takes no other flag here.")
    flags.DEFINE_bool("train", True, "Train the masks at once.")
    flags.DEFINE_integer("masks", DEFAULT.masks, "Masks of a layer.", lower_bound=1)
    flags.DEFINE_integer("per_token", DEFAULT.per_token, "Masks of a token.", lower_bound=1)
    flags.DEFINE_integer(
        "groups", DEFAULT.groups, "Experts that each dense FFN is cut into.", lower_bound=1
    )
    flags.DEFINE_float("target", DEFAULT.target, "Share of experts that a token uses in the end.")
    flags.DEFINE_string(
        "warmup", DEFAULT.warmup, "Until the target is reached: steps, tokens, or percent."
    )
    flags.DEFINE_float("gain", DEFAULT.gain, "How much faster gates learn than weights.")
    flags.DEFINE_float("rate", DEFAULT.rate, "Step size of the multipliers.")
    flags.DEFINE_string("steps", DEFAULT.steps, "Length of the training: steps or tokens.")
    flags.DEFINE_float("lr", DEFAULT.lr, "Peak learning rate.")


def run() -> None:
    """Masks a run and trains it, or makes masks real."""
    if value("harden"):
        _harden()
    else:
        _mask()


def _mask() -> None:
    how = asked_for(Masking)
    changes: dict[str, Any] = {
        "train.steps": how.steps,
        "optimizer.lr": how.lr,
        "evaluation.at_start": True,
        "evaluation.every": "5%",  # the curve of loss against active share is what it is for
        **settings(value("set")),
    }
    source, restored, tree = open_source()
    experiment = override(source.experiment, changes)
    router = how.rule(_warmup(experiment, how.warmup))
    model, made = masked(source.experiment.model, tree, router, how.groups, value("seed"))
    found = agreement(source, tree, model, made)
    print(compared("at its first step", found), flush=True)
    del tree
    experiment = write_converted(
        value("to"),
        source,
        restored.step,
        model,
        made,
        kind="mask",
        seed=value("seed"),
        options=how,
        record={"agreement": dataclasses.asdict(found)},
        changes=changes,
        argv=sys.orig_argv,
    )
    print(f"step {restored.step} of {source.root} masked: {Path(value('to')).resolve()}")
    if value("train"):
        progress = make_progress(experiment.log.console_seconds)
        try:
            result = train(experiment, value("to"), progress=progress, argv=sys.orig_argv)
        finally:
            progress.close()
        print(f"trained: validation loss {result.final['eval']['loss']:.4f} nats/token")


def _warmup(experiment: Experiment, duration: str) -> int:
    return to_steps(
        duration,
        total_steps=experiment.total_steps,
        tokens_per_step=experiment.tokens_per_step,
        path="--warmup",
    )


def _harden() -> None:
    for name in ("masks", "per_token", "groups", "target", "warmup", "gain", "rate", "steps", "lr"):
        if flags.FLAGS[name].present:
            raise ConfigError(f"--{name}: says nothing with --harden; nearest valid: without it")
    changes = settings(value("set"))
    source, restored, tree = open_source()
    before = source.experiment.model
    model, made, report = harden(before, tree)
    found = agreement(source, tree, model, made)
    print(compared("masks made real", found), flush=True)
    del tree
    for one in report:
        print(_line(one))
    write_converted(
        value("to"),
        source,
        restored.step,
        model,
        made,
        kind="harden",
        seed=value("seed"),
        options=Hardening(),
        record={
            "agreement": dataclasses.asdict(found),
            "layers": [_record(one) for one in report],
        },
        changes=changes,
        argv=sys.orig_argv,
    )
    print(f"step {restored.step} of {source.root} made real: {Path(value('to')).resolve()}")


@dataclasses.dataclass(frozen=True)
class Hardening:
    """It has no options."""


def _record(one: Hardened) -> dict[str, Any]:
    return {
        "layer": one.layer,
        **{name: list(found) for name, found in dataclasses.asdict(one.classes).items()},
        "shared_width": one.always,
        "widths": list(one.widths),
        "masks": ["".join("01"[int(on)] for on in row) for row in one.member_ME],
        "active_width": one.active_width,
    }


def _line(one: Hardened) -> str:
    classes = one.classes
    return (
        f"layer {one.layer:>2}: {len(classes.shared)} shared, {len(classes.specific)} "
        f"token-specific, {len(classes.inactive)} inactive; width {one.always} always, experts of "
        f"{', '.join(map(str, one.widths))}; {one.active_width:.1f} per token"
    )
