"""Which dimension of an array lies along which axis of the mesh.

The axis letters at the end of every parameter's name (`gate_NUD`, `q_DHd`) *are* its roles, so one
table of letters places parameters, gradients and optimizer state of any module, a user's included.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moejax.config.knobs import ConfigError
from moejax.sharding.mesh import BATCH_AXES

Tree = Any

LETTERS: dict[str, tuple[str, ...]] = {
    "N": ("expert", "tensor"),  # storage units of experts
    "V": ("tensor",),  # vocabulary
    "H": ("tensor",),  # attention heads
    "G": ("tensor",),  # key-value heads
    "F": ("tensor",),  # hidden units of a dense or shared FFN
    "D": ("fsdp", "expert"),  # model width; of experts: fsdp alone, `expert` is taken
    # Latent widths of queries and of keys and values (MLA): too small for both axes of a large pod.
    "Q": ("fsdp",),
    "R": ("fsdp",),
}
"""Mesh axes of each axis letter, in order of precedence; letters that are absent are not split. A
mesh axis splits one dimension of an array at most."""


_ROLES = re.compile(r"_[A-Z][A-Za-z0-9]*$")
"""The axis letters of a name: the first is a capital."""


def leaf_spec(name: str, shape: tuple[int, ...], mesh: Mesh, where: str = "") -> PartitionSpec:
    """Where a parameter lies.

    Args:
      name: its name, ending in `_` and one letter per dimension: `gate_NUD`.
      shape: may have more dimensions in front (stacked layers), which are not split.
      where: its full name, for messages.

    Raises:
      ConfigError: fewer dimensions than letters, or a dimension that does not divide.
    """
    where = where or name
    letters = name.rpartition("_")[2]
    stacked = len(shape) - len(letters)
    if stacked < 0:
        raise ConfigError(
            f"{where}: has {len(shape)} dimensions {shape} but {len(letters)} axis letters"
        )
    if len(letters) < 2:  # vectors are small: every device has them whole
        return PartitionSpec()
    taken: set[str] = set()
    found: list[tuple[str, ...] | None] = [None] * len(shape)
    # Experts and heads come before the model width, whatever their order in the name.
    for letter in LETTERS:
        for place, own in enumerate(letters):
            axes = tuple(a for a in LETTERS[letter] if a not in taken and mesh.shape[a] > 1)
            if own != letter or not axes:
                continue
            size, parts = shape[stacked + place], math.prod(mesh.shape[a] for a in axes)
            if size % parts:
                raise ConfigError(_indivisible(where, shape, stacked + place, axes, mesh))
            taken.update(axes)
            found[stacked + place] = axes
    while found and found[-1] is None:
        found.pop()
    return PartitionSpec(*found)


def _indivisible(
    where: str, shape: tuple[int, ...], place: int, axes: tuple[str, ...], mesh: Mesh
) -> str:
    parts = math.prod(mesh.shape[a] for a in axes)
    # The last axis is the one to change: those before it divide, or it is alone.
    *fixed, last = axes
    rest = math.prod(mesh.shape[a] for a in fixed)
    near = max(
        (n for n in range(1, mesh.shape[last] + 1) if shape[place] % (rest * n) == 0), default=0
    )
    hint = f"{last}={near}" if near else f"{axes[0]}={math.gcd(shape[place], mesh.shape[axes[0]])}"
    sizes = " x ".join(f"{a}={mesh.shape[a]}" for a in axes)
    return (
        f"{where}: dimension {place} of {shape} does not divide over {sizes} ({parts} devices); "
        f"nearest valid value config.mesh.{hint}"
    )


def tree_shardings(tree: Tree, mesh: Mesh) -> Tree:
    """A NamedSharding for every leaf of parameters, of a train state or of optimizer state.

    A leaf is placed by the innermost name on its path, which optimizer state shares with the
    parameter it belongs to; leaves without a name (counters, keys) are copies.

    Raises:
      ConfigError: as `leaf_spec`, naming the parameter.
    """

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        if not names or not _ROLES.search(names[-1]):
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, leaf_spec(names[-1], leaf.shape, mesh, where))

    return jax.tree_util.tree_map_with_path(place, tree)


def batch_spec(mesh: Mesh) -> PartitionSpec:
    """Rows of a batch over every axis but `tensor`."""
    axes = tuple(axis for axis in BATCH_AXES if mesh.shape[axis] > 1)
    return PartitionSpec(axes) if axes else PartitionSpec()


def constrain_rows(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Tells the compiler that the leading dimension lies as the batch does; no mesh: nothing."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, batch_spec(mesh)))
