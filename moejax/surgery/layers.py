"""A parameter tree as a list of layers, and a list of layers as the tree of another model.

Layers that repeat are stored stacked (`moejax.models.segments`); a model whose FFNs change repeats
otherwise, and so lies otherwise.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from moejax.config import ConfigError
from moejax.models import ModelConfig, Transformer
from moejax.models.segments import segments

Tree = dict[str, Any]


def require_dense(model: ModelConfig, what: str) -> None:
    """Raises ConfigError unless every layer has a dense FFN."""
    moe = [index for index, layer in enumerate(model.plan()) if layer is not None]
    if moe:
        raise ConfigError(
            f"{what}: layer {moe[0]} has experts already; only a dense model is taken apart"
        )


def take_layers(model: ModelConfig, segment_tree: Tree) -> list[Tree]:
    """The blocks of all layers in model order: views of the stacked arrays.

    Args:
      model: whose tree it is.
      segment_tree: `params["segments"]` or `router_state["segments"]`.
    """
    found: list[Tree] = [{} for _ in range(model.num_layers)]
    for index, segment in enumerate(segments(model.plan())):
        for position in range(len(segment.pattern)):
            stacked = segment_tree[str(index)].get(str(position), {})
            for row, layer in enumerate(segment.layers(position)):
                found[layer] = jax.tree.map(lambda leaf, row=row: np.asarray(leaf)[row], stacked)
    return found


def put_layers(model: ModelConfig, layers: list[Tree]) -> Tree:
    """The inverse: blocks of all layers, stacked as the model has them. The list is emptied on the
    way, so that at most two copies of one segment are held."""
    tree: Tree = {}
    for index, segment in enumerate(segments(model.plan())):
        tree[str(index)] = {}
        for position in range(len(segment.pattern)):
            own = [layers[layer] for layer in segment.layers(position)]
            for layer in segment.layers(position):
                layers[layer] = {}
            tree[str(index)][str(position)] = jax.tree.map(lambda *leaves: np.stack(leaves), *own)
    return tree


def assemble(model: ModelConfig, params: Tree, blocks: list[Tree], states: list[Tree]) -> Tree:
    """`{params, router_state}` of a model: everything but its layers from `params`.

    Raises:
      ValueError: the result is not the tree that the model has.
    """
    made = {
        "params": params | {"segments": put_layers(model, blocks)},
        "router_state": {"segments": put_layers(model, states)},
    }
    wanted = dict(
        zip(
            ("params", "router_state"),
            jax.eval_shape(Transformer(model).init, jax.random.key(0)),
            strict=True,
        )
    )
    here, there = (
        {
            jax.tree_util.keystr(path): (leaf.shape, leaf.dtype)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (made, wanted)
    )
    if here != there:
        names = here.keys() | there.keys()
        odd = min(name for name in names if here.get(name) != there.get(name))
        raise ValueError(f"{odd}: {here.get(odd)} was made, {there.get(odd)} is wanted")
    return made
