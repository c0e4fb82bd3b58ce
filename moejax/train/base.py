"""What a fine-tuning starts from: a checkpoint of another run, on the mesh of this one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from moejax.config.compose import build, diff, format_diff, to_plain
from moejax.config.files import read_json
from moejax.config.knobs import ConfigError
from moejax.train.checkpoint import CheckpointReader, DamagedError
from moejax.train.digest import digests
from moejax.train.errors import StorageError
from moejax.train.experiment import Experiment
from moejax.train.layout import make_layout
from moejax.train.rundir import RunDir, check_format
from moejax.train.shapes import assembled, on_mesh, state_layout
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
    params = assembled(tuning, state, model, mesh)
    found = hash_on_mesh(params, model, mesh)
    if found != finetune.base_hash:
        raise ConfigError(
            f"{root}: its parameters at step {step} have the hash {found}, and config.finetune."
            f"base_hash={finetune.base_hash!r}: it is not the base that this run was made for"
        )
    return params, state.router_state


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


def hash_on_mesh(params: Tree, model: Any, mesh: Mesh | None) -> str:
    """`params_hash` of parameters as a model holds them: the same on every mesh."""
    if mesh is not None:
        abstract = on_mesh(jax.eval_shape(lambda: params), mesh)
        params = make_layout(abstract, model.placements(), mesh).store(params)
    return params_hash(params)


def params_hash(params: Tree) -> str:
    """16 hexadecimal digits for a tree of parameters in config order: names, shapes, bits."""
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    found = digests(list(leaves.values()))
    return leaves_hash(
        {
            name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "digest": digest}
            for (name, leaf), digest in zip(leaves.items(), found, strict=True)
        }
    )


def leaves_hash(leaves: dict[str, dict[str, Any]]) -> str:
    """`params_hash` from what a checkpoint's header says of its arrays."""
    text = json.dumps(leaves, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
