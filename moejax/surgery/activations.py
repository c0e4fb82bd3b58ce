"""A dense model walked layer by layer over a text: what every FFN reads, and how its units answer.

One layer is finished before the next begins, so the hidden states of the text are held once and the
activations of one layer at a time: the text may be as long as the FFN of one layer allows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from moejax.experts.dense import DenseFFN
from moejax.experts.spec import ACTIVATIONS, projections
from moejax.models import ModelConfig
from moejax.models.block import Tokens
from moejax.models.segments import segments
from moejax.models.stack import BlockFunctions
from moejax.surgery.layers import require_dense, take_layers

Tree = dict[str, Any]
Batch = dict[str, NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class LayerInputs:
    """What the FFN of one layer reads of a text.

    Attributes:
      layer: index in the model.
      ffn: its weights, `gate_FD` (gated only), `up_FD`, `down_FD`.
      x_TD: `[T, D]` float32, its inputs, tokens in the text's order, padding left out.
    """

    layer: int
    ffn: Tree
    x_TD: NDArray[np.float32]


def tokens_of(batch: Mapping[str, Any]) -> Tokens:
    """A batch as the blocks take it."""
    return Tokens(
        jnp.asarray(batch["tokens"]),
        jnp.asarray(batch["positions"]),
        jnp.asarray(batch["segment_ids"]),
    )


def walk(model: ModelConfig, params: Tree, batches: Sequence[Batch]) -> Iterator[LayerInputs]:
    """Yields the inputs of every layer's FFN, first to last.

    Args:
      model, params: a dense model.
      batches: `tokens, segment_ids, positions` int32 `[B, S]`, all of one shape.
    """
    require_dense(model, "walk")
    dtype = model.dtypes[1]
    (segment, *_) = segments(model.plan())
    block = BlockFunctions(model, segment.pattern[0], None)

    @jax.jit
    def half(params: Tree, x_BSD: jax.Array, tokens: Tokens) -> tuple[jax.Array, jax.Array]:
        merged = block.merged(params, {})
        assert isinstance(merged.ffn, DenseFFN)
        x_BSD, h_BSD, _ = merged.attend(x_BSD, tokens)
        return x_BSD + merged.ffn(h_BSD), h_BSD

    texts = [tokens_of(batch) for batch in batches]
    valid = [np.asarray(batch["segment_ids"]).reshape(-1) > 0 for batch in batches]
    table_VD = np.asarray(params["embed"]["table_VD"])
    held = [jnp.asarray(table_VD[np.asarray(batch["tokens"])], dtype) for batch in batches]
    for layer, own in enumerate(take_layers(model, params["segments"])):
        read = []
        for index, tokens in enumerate(texts):
            held[index], h_BSD = half(own, held[index], tokens)
            h_TD = np.asarray(h_BSD, np.float32).reshape(-1, model.d_model)
            read.append(h_TD[valid[index]])
        yield LayerInputs(layer, own["ffn"], np.concatenate(read))


def answers(ffn: Tree, activation: str, x_TD: NDArray, block: int = 4096) -> Iterator[NDArray]:
    """Yields `|hidden|` `[t, F]` float32 of the tokens, `block` at a time."""
    into = [jnp.asarray(ffn[f"{name}_FD"], jnp.float32) for name in projections(activation)[:-1]]
    for first in range(0, len(x_TD), block):
        yield np.asarray(_answers(activation, into, jnp.asarray(x_TD[first : first + block])))


def _answers(activation: str, into: list[jax.Array], x_TD: jax.Array) -> jax.Array:
    return jnp.abs(ACTIVATIONS[activation](*(x_TD @ w_FD.T for w_FD in into)))


def activity_by_expert(
    ffn: Tree, activation: str, x_TD: NDArray, expert_F: NDArray, experts: int
) -> NDArray[np.float32]:
    """`[T, E]`: the sums of `|hidden|` over the units of each expert: what the oracle goes by."""
    owned_FE = np.equal.outer(expert_F, np.arange(experts)).astype(np.float32)
    return np.concatenate([part @ owned_FE for part in answers(ffn, activation, x_TD)])


def coactivation(ffn: Tree, activation: str, x_TD: NDArray) -> NDArray[np.float64]:
    """`[F, F]`: inner products over the text of how strongly two hidden units answer."""
    gram = np.zeros((len(ffn["up_FD"]),) * 2, np.float64)
    for part in answers(ffn, activation, x_TD):
        gram += part.T @ part
    return gram
