"""Two orders of a train state: as a run holds it, and as a checkpoint stores it.

On a mesh, experts are held in the order of their placement (`moejax.experts.exchange.placement`),
which depends on the mesh; a checkpoint holds them in config order, without padding, so that any
mesh reads it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moejax.config.knobs import ConfigError
from moejax.experts.exchange.placement import Placement
from moejax.sharding import tree_shardings

Placements = dict[tuple[str, str], Placement]


S = TypeVar("S")
"""A train state, or a part of it: a tree of arrays with the names of parameters."""


@dataclasses.dataclass(frozen=True)
class Layout(Generic[S]):
    """How to get from one order to the other.

    Attributes:
      held: the state as a run holds it: shapes, dtypes, shardings.
      stored: the same in config order.
      store, hold: between them; neither changes its argument.
    """

    held: S
    stored: S
    store: Callable[[S], S]
    hold: Callable[[S], S]


def make_layout(held: S, placements: Placements, mesh: Mesh | None) -> Layout[S]:
    """The layout of a model's state.

    Args:
      held: the train state as shapes, or a part of it.
      placements: by segment and position in its pattern; of the MoE layers.
    """
    moved = {place: own for place, own in placements.items() if not own.is_config_order}
    if mesh is None or not moved:
        return Layout(held, held, _as_it_is, _as_it_is)
    restore = functools.partial(_moved, placements=moved, method="restore")
    place = functools.partial(_moved, placements=moved, method="place")
    shapes = jax.eval_shape(restore, held)
    stored = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=_stored_sharding(path, leaf, mesh)
        ),
        shapes,
    )

    def shardings(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.sharding, tree)

    return Layout(
        held,
        stored,
        jax.jit(restore, out_shardings=shardings(stored)),
        jax.jit(place, out_shardings=shardings(held)),
    )


def _as_it_is(state: Any) -> Any:
    return state


def _moved(state: Any, placements: Placements, method: str) -> Any:
    def one(path: tuple[Any, ...], leaf: Any) -> Any:
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        if "experts" not in names or "segments" not in names or not _has_units(names[-1]):
            return leaf
        start = names.index("segments")
        own = placements.get((names[start + 1], names[start + 2]))
        if own is None:
            return leaf
        # As integers: a gather over devices adds zeros, and a float that is added to zero loses
        # its sign if it is -0.0, and everything if it is denormal, as Adam's moments can be.
        bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
        # One layer after the other: moving units between devices gathers what it moves.
        bits = jax.lax.map(lambda layer_NUD: getattr(own, method)(layer_NUD, 0), bits)
        return jax.lax.bitcast_convert_type(bits, leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, state)


def _has_units(name: str) -> bool:
    """Whether the first axis of an array, after that of the layers, is storage units: chosen rows
    of one (`X`) are in config order on every mesh."""
    return name.rpartition("_")[2].startswith("N")


def _stored_sharding(path: tuple[Any, ...], leaf: Any, mesh: Mesh) -> NamedSharding:
    try:
        return next(iter(jax.tree.leaves(tree_shardings(_nested(path, leaf), mesh))))
    except ConfigError:
        # 63 experts do not divide over 8 devices; their model width may.
        parts = mesh.shape["fsdp"] * mesh.shape["expert"]
        spec = PartitionSpec(*[None] * (len(leaf.shape) - 1), ("fsdp", "expert"))
        return NamedSharding(mesh, spec if leaf.shape[-1] % parts == 0 else PartitionSpec())


def _nested(path: tuple[Any, ...], leaf: Any) -> Any:
    names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    return {names[-1]: leaf} if names else leaf
