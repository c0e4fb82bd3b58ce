"""Fine-tuning as the trainer sees it: which part of a model is trained, and how it is put together.

The trainer knows one thing about a method: `Method.plan` makes a `Tuning` of a model, which splits
whole parameters into trainable and frozen ones and assembles them again inside the step. Methods
(slices of stacked arrays, low-rank updates) live in `moejax.finetune` and register in `METHODS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from moejax.config.knobs import ConfigError, knob
from moejax.config.registry import Registry
from moejax.train.state import TrainState, Tree, merge

METHODS = Registry("fine-tuning method", home="moejax.finetune.methods")


class Tuning(Protocol):
    """What a method becomes for one model: static data and pure functions, both jittable.

    `params` are the model's as it holds them: on a mesh with the units of `experts` in the order
    of `model.placements()`, padding included. A trainable leaf is stored in checkpoints and
    adapters for any mesh, so

    * a leaf whose axis letters begin with `N` is in held order as well, under the path of its
      layer (`segments/I/J/.../experts/...`): the layout moves it (`moejax.train.layout`);
    * every other leaf must not depend on the placement: chosen rows (letter `X`) are in config
      order, and `split` and `assemble` look up where the placement holds them (`held_rows`).

    A leaf named `b_...`, `scale_...`, `bias_...`, `..._norm_...` does not decay
    (`optimizer.decay_mask`), the rest does.

    Attributes:
      routes: whether routers are trained: their state (biases, multipliers) then moves on with the
        steps and belongs to the adapter; else it stays the base's, bit for bit.
    """

    routes: bool

    def split(self, params: Tree, key: jax.Array) -> tuple[Tree, Tree]:
        """`(trainable, frozen)`; `key` draws what a method adds, e.g. LoRA's first factor."""

    def assemble(self, trainable: Tree, frozen: Tree) -> Tree:
        """Whole parameters, differentiable in `trainable`."""


class Method(Protocol):
    """A registered frozen dataclass: what is trained, as knobs.

    Methods inherit `moejax.finetune.adapter.Stored`, which fulfils `store`.
    """

    def validate(self, path: str) -> None:
        """Raises ConfigError for knobs that fit no model."""

    def plan(self, model: Any, abstract_params: Tree) -> Tuning:
        """The method for one model; reads shapes only.

        Args:
          model: a `Transformer`, on a mesh or not.
          abstract_params: of `model.init`, as shapes.

        Raises:
          ConfigError: knobs that do not fit this model, e.g. an expert that is not there.
        """

    def store(self, directory: Path, record: Mapping[str, Any], arrays: Arrays) -> int:
        """Writes an adapter and returns its bytes.

        Args:
          directory: of the run, `RUN/adapter`.
          record: what belongs in adapter.json beside the method: run, step, base.
          arrays: trainable leaves by `a/b/c` path, in config order; `router_state/...` beside them
            where the tuning `routes`.
        """


Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class FineTune:
    """What a run starts from, which part of it is trained, and when it stops."""

    base_hash: str = knob(doc="of the base's parameters (`moejax.train.base.checkpoint_hash`)")
    method: Any = knob(registry=METHODS, doc="what is trained")
    base: str = knob("", doc="run directory of the base; may move: its hash is what counts")
    base_step: int = knob(0, unit="steps", doc="checkpoint of the base", low=0)
    label: str = knob("", doc="of the method, for reports; '' = its registered name")
    task: str = knob("", doc="name of the task, for reports")
    p: float = knob(0.0, doc="threshold of the selection of experts, for reports", low=0.0)
    keep_best: bool = knob(True, doc="the checkpoint with the best validation loss is the result")
    patience: int = knob(
        0, unit="evaluations", doc="stop after so many without a better one; 0 = never", low=0
    )

    def validate(self, path: str) -> None:
        """Raises ConfigError for a run that would stop early and keep nothing better."""
        if self.patience and not self.keep_best:
            raise ConfigError(
                f"{path}.patience={self.patience}: needs keep_best=true: what comes after the best "
                "evaluation is worse; nearest valid value 0"
            )


def plan_tuning(finetune: FineTune | None, model: Any) -> Tuning | None:
    """The tuning of a run; None: everything is trained, from scratch.

    Raises:
      ConfigError: the method does not fit the model.
    """
    if finetune is None:
        return None
    abstract, _ = jax.eval_shape(model.init, jax.random.key(0))
    tuning: Tuning = finetune.method.plan(model, abstract)
    return tuning


def held_rows(rows: np.ndarray, source: tuple[int, ...] | None) -> np.ndarray:
    """Where units lie that are numbered in config order.

    Args:
      rows: int `[X]`, units in config order.
      source: `Placement.source` of the layer (`model.placements()` by `(segment, position)`); None:
        no placement, nothing moves.

    Returns:
      int32 `[X]`, rows of the array as the model holds it.
    """
    if source is None:
        return np.asarray(rows, np.int32)
    where = {unit: place for place, unit in enumerate(source) if unit >= 0}
    return np.asarray([where[int(row)] for row in rows], np.int32)


def whole(tuning: Tuning | None, state: TrainState) -> Tree:
    """The model's whole parameters; jittable."""
    return together(tuning, state.trainable, state.frozen)


def together(tuning: Tuning | None, trainable: Tree, frozen: Tree) -> Tree:
    """As `whole`, of the two parts."""
    if tuning is None:
        return merge(trainable, frozen)
    return tuning.assemble(trainable, frozen)


def parts(tuning: Tuning | None, state: TrainState) -> Any:
    """What the evaluation step takes: whole parameters, or both parts where they are assembled
    inside of it, so that no second copy of the model exists between the steps."""
    return state.params if tuning is None else (state.trainable, state.frozen)


def count(tree: Tree) -> int:
    """Parameters of a tree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def size(tree: Any) -> int:
    """Bytes of a tree of arrays or shapes."""
    return sum(
        int(np.prod(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
    )
