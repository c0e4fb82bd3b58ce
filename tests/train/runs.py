"""Comparing run directories bit for bit; the environment of a training process."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from moejax.train.progress import Progress, StepReport

WALL_CLOCK = ("time/", "perf/")


def environment(**variables: Any) -> dict[str, str]:
    """This process' environment for one with a single CPU device, as on a laptop."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    kept = [flag for flag in flags if "host_platform_device_count" not in flag]
    own = {name: str(value) for name, value in variables.items()}
    return os.environ | {"XLA_FLAGS": " ".join(kept)} | own


class Killed(BaseException):
    """Stands for a kill: nothing in the trainer catches it on purpose."""


class KillAt(Progress):
    """Dies while step `step` is being reported, after its metrics line was written."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.kill_at = step

    def step(self, report: StepReport) -> None:
        super().step(report)
        if report.step == self.kill_at:
            raise Killed


def metrics(run: Path) -> list[dict[str, Any]]:
    """All lines without what may depend on the wall clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if not key.startswith(WALL_CLOCK)}
        for line in lines
    ]


def saved_state(run: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, wherever the run keeps them."""
    url = json.loads((run / "config.json").read_text())["config"]["checkpoint"]["dir"]
    manager = ocp.CheckpointManager(epath.Path(url or run.absolute()) / "checkpoints")
    restored = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))
    manager.close()
    return {name: np.asarray(leaf) for name, leaf in restored.state.items()}


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as loaded:
        return dict(loaded)


def assert_same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name


def assert_same_run(a: Path, b: Path, step: int) -> None:
    """Parameters, optimiser and router state, metrics, routing and traces: the same bits."""
    assert_same_bits(saved_state(a, step), saved_state(b, step))
    assert metrics(a) == metrics(b)
    for kind in ("routing", "trace"):
        names = sorted(path.name for path in (a / kind).glob("*.npz"))
        assert names == sorted(path.name for path in (b / kind).glob("*.npz"))
        assert names
        for name in names:
            assert_same_bits(arrays(a / kind / name), arrays(b / kind / name))
    finals = [json.loads((run / "final.json").read_text()) for run in (a, b)]
    for final in finals:
        final.pop("time")
    assert finals[0] == finals[1]


def tree_bytes(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]
