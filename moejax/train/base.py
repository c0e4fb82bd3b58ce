"""What a fine-tuning starts from: a checkpoint of another run, on the mesh of this one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from moejax.config.compose import build, diff, format_diff, to_plain
from moejax.config.files import read_json
from moejax.config.knobs import ConfigError
from moejax.train.checkpoint import CheckpointReader, DamagedError
from moejax.train.errors import StorageError
from moejax.train.experiment import Experiment
from moejax.train.rundir import RunDir, check_format
from moejax.train.shapes import assembled, state_layout
from moejax.train.state import Tree
from moejax.train.store import open_store
from moejax.train.tuning import FineTune, plan_tuning
from moejax.train.votes import on_first


def read_base(
    finetune: FineTune, experiment: Experiment, model: Any, mesh: Mesh | None
) -> tuple[Tree, Tree]:
    """Parameters and router state of the base, as `model` holds them; all processes call it.

    Raises:
      ConfigError: the base is gone, is another model, or has other parameters than it had.
      StorageError: its checkpoint is damaged, or the store does not answer.
    """
    root = Path(finetune.base)
    theirs = require_base(finetune, experiment)
    tuning = plan_tuning(theirs.finetune, model)
    reader = CheckpointReader(
        RunDir(root, store=open_store(theirs.checkpoint.dir)).checkpoints,
        state_layout(theirs, model, tuning, mesh),
    )
    step = finetune.base_step
    if step not in reader.steps():
        there = ", ".join(map(str, reader.steps())) or "none"
        raise ConfigError(f"{root}: its checkpoint of step {step} is gone (there are: {there})")
    try:
        state, _ = reader.restore(step)
    except DamagedError as damage:
        raise StorageError(f"{root}: checkpoint of step {step}: {damage}") from damage
    found = checkpoint_hash(reader, step, theirs.finetune)
    if found != finetune.base_hash:
        raise ConfigError(
            f"{root}: its parameters at step {step} have the hash {found}, and config.finetune."
            f"base_hash={finetune.base_hash!r}: it is not the base that this run was made for"
        )
    return assembled(tuning, state, model, mesh), state.router_state


def require_base(finetune: FineTune, experiment: Experiment) -> Experiment:
    """The base's experiment, before anything is compiled or read.

    Raises:
      ConfigError: no run is there, or one of another model.
    """
    root = Path(finetune.base)
    theirs = experiment_at(root)
    rows = diff(to_plain(theirs.model), to_plain(experiment.model))
    if rows:
        said = format_diff(rows[:3]).replace("\n", "; ")
        raise ConfigError(f"config.model: is not that of the base {root}: {said}")
    return theirs


def experiment_at(root: Path) -> Experiment:
    """The experiment of a run directory that process 0 sees, in all processes.

    Raises:
      ConfigError: no run is there, or none of this version.
    """

    def read() -> Any:
        if not (root / "config.json").is_file():
            raise ConfigError(f"{root}: holds no run: has no config.json")
        record = read_json(root / "config.json")
        check_format(root / "config.json", record)
        return record["config"]

    return build(Experiment, on_first(read), f"{root}/config.json: config")


def checkpoint_hash(reader: CheckpointReader, step: int, finetune: FineTune | None) -> str:
    """16 hexadecimal digits for the parameters that a checkpoint stands for; its header is read.

    They are of names, shapes and bits in config order, so that they are the same on every mesh; of
    a fine-tuned run, of what it trained, its method and its base's hash: whole parameters of
    low-rank updates come out of matrix products, whose last bits do depend on the mesh.

    Raises:
      StorageError: the header cannot be read, or tells of no parameters.
    """
    try:
        leaves = reader.described(step)
    except DamagedError as damage:
        raise StorageError(f"{reader.place}: checkpoint of step {step}: {damage}") from damage
    prefix = "trainable."
    trained = {
        name.removeprefix(prefix).replace(".", "/"): leaf
        for name, leaf in leaves.items()
        if name.startswith(prefix)
    }
    if not trained:
        raise StorageError(f"{reader.place}: checkpoint of step {step}: holds no parameters")
    if finetune is None:
        return _hash(trained)
    plain = to_plain(finetune)
    return _hash({"": {"base": plain["base_hash"], "method": plain["method"]}, **trained})


def _hash(leaves: dict[str, dict[str, Any]]) -> str:
    text = json.dumps(leaves, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
