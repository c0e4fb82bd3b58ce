"""An adapter merged into its base: a run directory like any other, with whole parameters."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from moejax.finetune.adapter import Adapter, applied
from moejax.probe.opened import OpenedRun
from moejax.surgery.rundir import numpy_tree, write_converted
from moejax.train import Experiment
from moejax.train.newrun import require_empty


@dataclasses.dataclass(frozen=True)
class Merge:
    """What was asked for: the adapter and its kind, for surgery.json."""

    adapter: str
    kind: str


def merge(
    adapter: Adapter,
    run: OpenedRun,
    to: str | os.PathLike[str],
    *,
    step: int | None = None,
    changes: Mapping[str, Any] | None = None,
    argv: Sequence[str] = (),
) -> Experiment:
    """Makes a run of a base (on one device) and an adapter, before its first step.

    Slices are put in their places, bit for bit; low-rank updates are added once, in the arithmetic
    of the step that trained them.

    Raises:
      ConfigError: the directory holds something, or the adapter belongs to another base.
    """
    require_empty(to)
    whole = applied(adapter, run, step)
    options = Merge(str(adapter.directory.resolve()), str(adapter.record.get("kind")))
    return write_converted(
        to,
        run,
        whole.step,
        run.experiment.model,
        numpy_tree({"params": whole.params, "router_state": whole.router_state}),
        kind="merge",
        seed=0,
        options=options,
        record={"adapter": adapter.record},
        changes=changes,
        argv=argv,
    )
