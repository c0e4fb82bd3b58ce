"""Training chosen slices of stacked arrays: whole arrays, some of their layers, or some of the
units of some layers.

What is trained is cut out; gradients, optimizer state, weight decay and clipping never see the
rest, which stays in the base, bit for bit (methods.md D.5, 4: a zero gradient is not enough, AdamW
decays what has none).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import numpy as np

from moejax.finetune.leaves import Ints, Tree, filled, flat, nested

Rows = tuple[Ints, ...]
"""Which slices of an array: indices along its first axis, or its first two, one element per slice
in each; none at all: the whole array."""


@dataclasses.dataclass(frozen=True, eq=False)
class Slices:
    """The slices that are trained; a `Tuning` (`moejax.train.tuning`).

    The trainable tree has, where the base has `gate_NUD` `[L, N, U, D]`: the array itself if it is
    trained whole; `gate_NUD` `[X, N, U, D]` of X layers; or `gate_XUD` `[X, U, D]` of X units. The
    frozen tree is the base, without the arrays that are trained whole. Slices are in the order of
    layers, experts and their units in the config, so that they are the same arrays on any mesh.

    Attributes:
      template: shapes and dtypes of the base.
      chosen: by path the slices of each trained array.
      routes: whether routers are trained.

    Raises:
      ValueError: a path that the base lacks; an index out of range, twice, or unequally many.
    """

    template: Tree
    chosen: Mapping[str, Rows]
    routes: bool = False

    def __post_init__(self) -> None:
        shapes = {path: tuple(leaf.shape) for path, leaf in flat(self.template).items()}
        for path, rows in self.chosen.items():
            if path not in shapes:
                raise ValueError(f"{path}: the model has no such array")
            _check_rows(path, rows, shapes[path])

    def split(self, params: Tree, key: jax.Array) -> tuple[Tree, Tree]:
        """`(trainable, frozen)`; nothing is drawn from the key."""
        del key
        leaves = flat(params)
        trainable = {
            self.trained_path(path): leaves[path].at[rows].get(mode="promise_in_bounds")
            if rows
            else leaves[path]
            for path, rows in self.chosen.items()
        }
        whole = {path for path, rows in self.chosen.items() if not rows}
        frozen = {path: leaf for path, leaf in leaves.items() if path not in whole}
        return nested(trainable), nested(frozen)

    def assemble(self, trainable: Tree, frozen: Tree) -> Tree:
        """The whole parameters: the base with the trained slices in their places.

        Args:
          trainable: as `split` makes it.
          frozen: the same; arrays that are trained whole may be there, and are not looked at.
        """
        new, old = flat(trainable), flat(frozen)

        def whole(path: str) -> jax.Array:
            if path not in self.chosen:
                leaf: jax.Array = old[path]
                return leaf
            rows, own = self.chosen[path], new[self.trained_path(path)]
            if not rows:
                return own
            # Copied, not added: what is frozen keeps its bits.
            return old[path].at[rows].set(own, unique_indices=True, mode="promise_in_bounds")

        return filled(self.template, whole)

    def trained_path(self, path: str) -> str:
        """Where the trainable tree has the slices of an array of the base."""
        branch, slash, name = path.rpartition("/")
        return branch + slash + sliced_name(name, self._ndim[path], len(self.chosen[path]))

    @functools.cached_property
    def _ndim(self) -> dict[str, int]:
        return {path: len(leaf.shape) for path, leaf in flat(self.template).items()}


def sliced_name(name: str, ndim: int, indexed: int) -> str:
    """The name of an array of slices: the axis letters of those that remain, after `X` if that of
    the layers is not the only one that is gone: `gate_NUD` becomes `gate_XUD`."""
    base, _, letters = name.rpartition("_")
    lost = indexed - (ndim - len(letters))
    return f"{base}_X{letters[lost:]}" if lost > 0 else name


def _check_rows(path: str, rows: Rows, shape: tuple[int, ...]) -> None:
    if len(rows) > len(shape) or len({len(index_X) for index_X in rows}) > 1:
        raise ValueError(f"{path}: {len(rows)} index arrays do not name slices of {shape}")
    for index_X, size in zip(rows, shape, strict=False):
        if len(index_X) and not (index_X.min() >= 0 and index_X.max() < size):
            raise ValueError(f"{path}: a slice is out of range of {shape}")
    if rows and np.unique(np.stack(rows), axis=1).shape[1] != len(rows[0]):
        raise ValueError(f"{path}: a slice is named twice")
