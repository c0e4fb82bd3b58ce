"""What a fine-tuning leaves behind: its adapter, and the `finetune` part of final.json."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from moejax.config.registry import registered_name
from moejax.models.transformer import Transformer
from moejax.train.checkpoint import Checkpoints, DamagedError
from moejax.train.clock import Clock
from moejax.train.errors import StorageError
from moejax.train.experiment import Experiment
from moejax.train.programs import Programs
from moejax.train.rundir import RunDir
from moejax.train.sinks.jsonl import read_lines
from moejax.train.state import TrainState
from moejax.train.tuning import Arrays, FineTune, Tuning, count, size
from moejax.train.votes import on_first


def finetune_record(
    experiment: Experiment,
    programs: Programs,
    checkpoints: Checkpoints,
    run_dir: RunDir,
    state: TrainState,
    clock: Clock,
    *,
    early: bool,
) -> dict[str, Any]:
    """Writes the adapter of the state that is kept and returns what final.json says of the run.

    Every process calls it: a checkpoint is restored, and arrays are gathered, by all of them
    together.

    Args:
      state, clock: at the end of the run, saved. Where another step is kept the state is deleted.
      early: the run stopped before its last step.

    Raises:
      StorageError: the best checkpoint is damaged.
    """
    finetune, tuning = experiment.finetune, programs.tuning
    assert finetune is not None and tuning is not None
    step = clock.step if clock.best is None else clock.best.step
    if step != clock.step:
        # It is on the disk, and callers hold it: two whole states may not fit a device.
        for leaf in jax.tree.leaves(state):
            leaf.delete()
        state = _at(checkpoints, step)
    arrays = adapter_arrays(programs, tuning, state)
    record = adapter_record(experiment, finetune, run_dir, step)
    written = on_first(lambda: finetune.method.store(run_dir.adapter, record, arrays))
    stored = programs.layout.stored
    step_bytes = None
    if "train_step" in programs.temporary:
        step_bytes = programs.temporary["train_step"] + programs.arguments["train_step"]
    return {
        "method": finetune.label or registered_name(type(finetune.method)),
        "task": finetune.task,
        "p": finetune.p,
        "base_hash": finetune.base_hash,
        "trainable_parameters": count(stored.trainable),
        "total_parameters": count(_abstract_params(experiment)),
        "adapter_bytes": written,
        "optimizer_bytes": size(stored.opt_state),
        "step_bytes": step_bytes,
        "peak_bytes": _peak_bytes(),
        "step_seconds": on_first(lambda: _median_step(run_dir)),
        "best_step": step,
        "best_loss": None if clock.best is None else clock.best.loss,
        "stopped_early": early,
    }


def _abstract_params(experiment: Experiment) -> Any:
    """Of the model off its mesh: without padding."""
    return jax.eval_shape(Transformer(experiment.model).init, jax.random.key(0))[0]


def adapter_record(
    experiment: Experiment, finetune: FineTune, run_dir: RunDir, step: int
) -> dict[str, Any]:
    """What adapter.json says beside the method."""
    return {
        "base_hash": finetune.base_hash,
        "base": {"run": finetune.base, "step": finetune.base_step},
        "run": str(run_dir.root.resolve()),
        "step": step,
        "task": finetune.task,
        "label": finetune.label,
        "seed": experiment.seed,
    }


def adapter_arrays(programs: Programs, tuning: Tuning, state: TrainState) -> Arrays:
    """What was trained, by path, in config order; empty in all processes but the first."""
    stored = programs.layout.store(state)
    found = _gathered(stored.trainable, programs, "")
    if tuning.routes:
        found |= _gathered(stored.router_state, programs, "router_state/")
    return found


def _gathered(tree: Any, programs: Programs, prefix: str) -> Arrays:
    """Leaf by leaf: no device holds more than one of them whole."""
    found = {}
    mesh = programs.mesh
    everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    copy = jax.jit(lambda leaf: leaf, out_shardings=everywhere)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        whole = copy(leaf)
        if jax.process_index() == 0:
            name = prefix + jax.tree_util.keystr(path, simple=True, separator="/")
            found[name] = np.asarray(whole)
    return found


def _at(checkpoints: Checkpoints, step: int) -> TrainState:
    try:
        state, _ = checkpoints.restore(step)
    except DamagedError as damage:
        raise StorageError(f"the best checkpoint, of step {step}, is damaged: {damage}") from damage
    return state


def _median_step(run_dir: RunDir) -> float | None:
    """Seconds of a training step over all attempts."""
    seconds = [
        line["perf/step_seconds"]
        for line in read_lines(run_dir.metrics)
        if "perf/step_seconds" in line
    ]
    return float(np.median(seconds)) if seconds else None


def _peak_bytes() -> int | None:
    """Most bytes in use on a device since this process began; None where nobody counts: a CPU."""
    counted = jax.local_devices()[0].memory_stats()
    return None if not counted else counted.get("peak_bytes_in_use")
