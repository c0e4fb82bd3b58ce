"""What the arrays of a model's parameters are: role, axis letters, layers, and whose units."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from moejax.experts.config import MoeConfig
from moejax.experts.exchange.placement import Placement
from moejax.models.transformer import Transformer
from moejax.train.optimizer import OptimizerConfig, decay_mask
from moejax.train.tuning import held_rows

Tree = dict[str, Any]
Ints = NDArray[np.int32]

ROLES = ("attention", "dense", "routed", "shared", "router", "norms", "embeddings")
"""What an array is for: `dense` are FFNs of layers without experts, `router` all that decides (the
gates of shared and of constant experts too), `norms` every norm scale, `embeddings` also the
head."""

_NORM = re.compile(r"norm/scale_D$|norm/[^/]*$")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of a parameter tree, as the model holds it.

    Attributes:
      path: `segments/0/1/ffn/experts/gate_NUD`.
      role: one of `ROLES`.
      is_matrix: whether it is a matrix of each layer (or expert): no norm, bias or gain, and none
        of the vectors of gates.
      shape, dtype: of the array; the first axis of an array of a segment is its layers.
      layers: model layers along the first axis; none outside of the segments.
      moe: of an array of routed experts, the config of its layer.
      placement: where the units of these experts are on the mesh of the model; None: in config
        order.
    """

    path: str
    role: str
    is_matrix: bool
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    layers: tuple[int, ...] = ()
    moe: MoeConfig | None = None
    placement: Placement | None = None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def letters(self) -> str:
        """Axis letters: of all axes but that of the layers."""
        return self.name.rpartition("_")[2]

    @functools.cached_property
    def held_N(self) -> Ints:
        """int32, for each unit in config order where the model holds it."""
        assert self.moe is not None
        source = None if self.placement is None else self.placement.source
        return held_rows(np.arange(self.moe.spec.num_units), source)

    @functools.cached_property
    def expert_N(self) -> Ints:
        """int32, for each unit that the model holds the expert it belongs to; -1 is padding."""
        assert self.moe is not None
        owners = np.repeat(np.arange(self.moe.spec.num_experts), self.moe.spec.units)
        expert_N = np.full(self.shape[1], -1, np.int32)
        expert_N[self.held_N] = owners
        return expert_N

    def units_of(self, expert: int) -> Ints:
        """Where the model holds an expert's units, in the order of its hidden units."""
        assert self.moe is not None
        spec = self.moe.spec
        start = spec.starts[expert]
        return self.held_N[start : start + spec.units[expert]]


def leaves_of(model: Transformer, params: Tree) -> dict[str, Leaf]:
    """The arrays of a parameter tree by path.

    Args:
      model: whose parameters they are; one on a mesh holds experts in the order of its placements.
      params: arrays, or their shapes.

    Raises:
      ValueError: experts have another number of units than the model holds.
    """
    placements = model.placements()
    decays = flat(decay_mask(OptimizerConfig(decay="matrices"), params))
    found = {}
    for path, leaf in flat(params).items():
        parts = path.split("/")
        layers: tuple[int, ...] = ()
        moe = placement = None
        role = _role(parts)
        if parts[0] == "segments":
            segment = model.segments[int(parts[1])].segment
            layers = segment.layers(int(parts[2]))
            if role == "routed":
                moe = segment.pattern[int(parts[2])]
                assert moe is not None
                placement = placements.get((parts[1], parts[2]))
                units = moe.spec.num_units if placement is None else placement.num_units
                if leaf.shape[1] != units:
                    raise ValueError(f"{path}: has {leaf.shape[1]} units, the model holds {units}")
        found[path] = Leaf(
            path,
            role,
            decays[path] and "gates" not in parts and len(path.rpartition("_")[2]) > 1,
            tuple(leaf.shape),
            np.dtype(leaf.dtype),
            layers,
            moe,
            placement,
        )
    return found


def _role(parts: list[str]) -> str:
    if parts[0] in ("embed", "head"):
        return "embeddings"
    if _NORM.search("/".join(parts)):
        return "norms"
    if parts[3] == "attention":
        return "attention"
    kinds = {"experts": "routed", "shared": "shared", "router": "router", "gates": "router"}
    return kinds.get(parts[4], "dense")


def flat(tree: Tree) -> dict[str, Any]:
    """The leaves of a nested dict by `a/b/c` path, in the order of JAX."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def nested(leaves: Mapping[str, Any]) -> Tree:
    """The inverse of `flat` (without branches that hold nothing)."""
    tree: Tree = {}
    for path, leaf in leaves.items():
        *branches, name = path.split("/")
        functools.reduce(lambda at, branch: at.setdefault(branch, {}), branches, tree)[name] = leaf
    return tree


def filled(template: Tree, leaf_at: Callable[[str], Any]) -> Tree:
    """A tree like `template` (branches that hold nothing included) of what `leaf_at` returns."""
    tree: Tree = jax.tree_util.tree_map_with_path(
        lambda path, _: leaf_at(jax.tree_util.keystr(path, simple=True, separator="/")), template
    )
    return tree
