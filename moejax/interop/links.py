"""Links: which tensor of a file is which part of our parameters, in both directions.

A family is a list of links. Everything else (import, export, gradients in their names, strict
accounting) is written once, over links.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from moejax.models.config import ModelConfig
from moejax.models.segments import segments

Tree = dict[str, Any]
Arrays = tuple[np.ndarray, ...]

PARAMS, ROUTER_STATE = "params", "router_state"


@dataclasses.dataclass(frozen=True)
class Target:
    """Part of a leaf of ours.

    Attributes:
      path: keys of the leaf in the tree `{params: ..., router_state: ...}`.
      index: what is taken of the leaf: the place of a layer in a stack, then rows; () is all of it.
    """

    path: tuple[str, ...]
    index: tuple[int | slice, ...] = ()

    def leaf(self, tree: Tree) -> Any:
        """The whole leaf."""
        for key in self.path:
            tree = tree[key]
        return tree

    def view(self, tree: Tree) -> np.ndarray:
        """The part, a view where the leaf is a NumPy array."""
        found: np.ndarray = self.leaf(tree)[self.index]
        return found


@dataclasses.dataclass(frozen=True)
class Link:
    """One tensor of a file and the parts of ours that it holds.

    Attributes:
      name: the tensor's name.
      shape: its shape.
      targets: what it holds.
      split: the tensor to the parts, one array per target. Moves numbers, changes none.
      join: its inverse.
    """

    name: str
    shape: tuple[int, ...]
    targets: tuple[Target, ...]
    split: Callable[[np.ndarray], Arrays]
    join: Callable[[Arrays], np.ndarray]


def same(name: str, shape: Sequence[int], target: Target) -> Link:
    """The same numbers in the same order, perhaps grouped into other axes."""

    def join(parts: Arrays) -> np.ndarray:
        return parts[0].reshape(shape)

    return Link(name, tuple(shape), (target,), lambda x: (x,), join)


def linear(name: str, inputs: int, outputs: Sequence[int], target: Target) -> Link:
    """A linear map that they store `[out, in]` and we `[in, *outputs]`."""
    out = int(np.prod(outputs))

    def split(x: np.ndarray) -> Arrays:
        return (x.T.reshape(inputs, *outputs),)

    def join(parts: Arrays) -> np.ndarray:
        return parts[0].reshape(inputs, out).T

    return Link(name, (out, inputs), (target,), split, join)


def transposed(name: str, rows: int, columns: int, target: Target) -> Link:
    """A matrix that they store `[rows, columns]` and we `[columns, rows]`, grouped as may be."""

    def join(parts: Arrays) -> np.ndarray:
        return parts[0].reshape(columns, rows).T

    return Link(name, (rows, columns), (target,), lambda x: (x.T,), join)


def grouped(name: str, shape: Sequence[int], target: Target) -> Link:
    """A vector that we store in several axes."""
    flat = int(np.prod(shape))

    def split(x: np.ndarray) -> Arrays:
        return (x.reshape(shape),)

    return Link(name, (flat,), (target,), split, lambda parts: parts[0].reshape(flat))


def headed(name: str, outputs: int, inputs: Sequence[int], target: Target) -> Link:
    """A linear map that they store `[out, in]` and we `[*inputs, out]`."""
    flat = int(np.prod(inputs))

    def split(x: np.ndarray) -> Arrays:
        return (x.T.reshape(*inputs, outputs),)

    def join(parts: Arrays) -> np.ndarray:
        return parts[0].reshape(flat, outputs).T

    return Link(name, (outputs, flat), (target,), split, join)


def grouped_row(name: str, width: int, target: Target) -> Link:
    """A vector that they store as a matrix of one row."""

    def split(x: np.ndarray) -> Arrays:
        return (x.reshape(width),)

    return Link(name, (1, width), (target,), split, lambda parts: parts[0].reshape(1, width))


def permuted(link: Link, order: np.ndarray, axis: int = 0) -> Link:
    """A link whose tensor has its rows (or columns) in another order: our row `i` is their row
    `order[i]`."""
    inverse = np.argsort(order)

    def split(x: np.ndarray) -> Arrays:
        return link.split(np.take(x, order, axis))

    def join(parts: Arrays) -> np.ndarray:
        return np.take(link.join(parts), inverse, axis)

    return dataclasses.replace(link, split=split, join=join)


@dataclasses.dataclass(frozen=True)
class Layer:
    """Where a layer of a model is in our trees.

    Attributes:
      index: its number in the model.
      segment, position, repeat: its segment, its place in the pattern, and its repetition.
    """

    index: int
    segment: int
    position: int
    repeat: int

    def __call__(self, *names: str, rows: slice | None = None, tree: str = PARAMS) -> Target:
        """A leaf of this layer, or some rows of it."""
        path = (tree, "segments", str(self.segment), str(self.position), *names)
        return Target(path, (self.repeat,) if rows is None else (self.repeat, rows))


def layers(model: ModelConfig) -> Iterator[Layer]:
    """The layers of a model in order."""
    found = []
    for number, segment in enumerate(segments(model.plan())):
        for position in range(len(segment.pattern)):
            for repeat, index in enumerate(segment.layers(position)):
                found.append(Layer(index, number, position, repeat))
    return iter(sorted(found, key=lambda layer: layer.index))
