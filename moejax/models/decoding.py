"""Decoding with a key-value cache: pure functions over one explicit state.

`prefill` reads prompts, `decode_step` one more token of each row; both give the logits of what
comes next. Rows are padded on the left, so that all rows write the same place of their caches at
once; padding has document number 0, which no token attends to and no router fills a slot for. A
row's positions start at 0 with its first token, wherever that stands.

All shapes are static: one program for prompts of any length (read in pieces of one width), one for
every token after them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.config import ConfigError
from moejax.config.registry import registered_name
from moejax.experts.config import MoeConfig
from moejax.models.block import Tokens
from moejax.models.config import ModelConfig
from moejax.models.transformer import Transformer
from moejax.routing.capacity import CapacityConfig

Tree = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """What is known of `B` texts so far.

    Attributes:
      caches: of every attention layer, with `C` places (`Transformer.empty_caches`).
      place: int32 scalar, places in use, the same in all rows.
      first_B: int32 `[B]`, the place of each row's first token; padding lies before it.
    """

    caches: list[Tree]
    place: jax.Array
    first_B: jax.Array

    @property
    def position_B(self) -> jax.Array:
        """int32 `[B]`: the position that the next token of each row will have in its text."""
        return self.place - self.first_B


def empty_state(model: Transformer, first_B: jax.Array, capacity: int) -> DecodeState:
    """A state that holds nothing, with room for `capacity` tokens of each row, padding included.

    Args:
      model: whose caches it has.
      first_B: int32 `[B]`, how many tokens of padding each row starts with (`left_padded`); a row
        without any token has at least `capacity`.
      capacity: `C`. The caller keeps prompts and what follows within it.
    """
    caches = model.empty_caches(first_B.shape[0], capacity)
    return DecodeState(caches, jnp.zeros((), jnp.int32), jnp.asarray(first_B, jnp.int32))


def prefill(
    model: Transformer, params: Tree, router_state: Tree, tokens_BS: jax.Array, state: DecodeState
) -> tuple[jax.Array, DecodeState]:
    """Reads the next `S` tokens of every row.

    Long prompts are read by calling it on one piece after the other.

    Args:
      model: without bounds that depend on the batch (`require_decodable`).
      params, router_state: of the model; router state is read, never changed.
      tokens_BS: int32 ids; where `state.first_B` says so, padding.
      state: what was read before.

    Returns:
      Logits `[B, V]` of the token that follows the last one, float32 or wider, and the new state.
    """
    place_S = state.place + jnp.arange(tokens_BS.shape[1], dtype=jnp.int32)
    position_BS = place_S - state.first_B[:, None]
    tokens = Tokens(
        tokens_BS,
        jnp.maximum(position_BS, 0),
        (position_BS >= 0).astype(jnp.int32),
        model.mesh,
        # As if each row were alone: a rule that hashes who a token is gives it the same experts
        # whatever the batch.
        sequence_BS=jnp.zeros_like(position_BS),
    )
    x_BSD, outs = model.hidden(params, router_state, tokens, caches=state.caches)
    caches = [
        {str(position): out.cache for position, out in enumerate(segment)} for segment in outs
    ]
    wide = jnp.promote_types(x_BSD.dtype, jnp.float32)
    table_VD = model.head_table(params)
    logits_BV = jnp.einsum("bd,vd->bv", x_BSD[:, -1], table_VD, preferred_element_type=wide)
    logits_BV = logits_BV.astype(model.config.dtypes[2]).astype(wide)
    return logits_BV, DecodeState(caches, state.place + tokens_BS.shape[1], state.first_B)


def decode_step(
    model: Transformer, params: Tree, router_state: Tree, token_B: jax.Array, state: DecodeState
) -> tuple[jax.Array, DecodeState]:
    """As `prefill` for one token of each row, int32 `[B]`."""
    return prefill(model, params, router_state, token_B[:, None], state)


def left_padded(
    rows: Sequence[Sequence[int] | np.ndarray], *, batch: int, multiple: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of different lengths as one array, padded on the left.

    Args:
      rows: ids of each, at most `batch` of them, none empty.
      batch: rows of the result; those beyond `rows` are padding alone.
      multiple: the length is a multiple of it.
      pad_id: fills what is no token.

    Returns:
      int32 `[batch, P]`, and int32 `[batch]`: where each row's tokens start. A row of padding alone
      never starts.
    """
    length = -(-max(map(len, rows)) // multiple) * multiple
    tokens_BP = np.full((batch, length), pad_id, np.int32)
    first_B = np.full(batch, np.iinfo(np.int32).max // 2, np.int32)
    for row, ids in enumerate(rows):
        first_B[row] = length - len(ids)
        tokens_BP[row, first_B[row] :] = ids
    return tokens_BP, first_B


def rounded_up(length: int, unit: int) -> int:
    """The least of `unit` times 1, 2, 3, 4, 6, 8, 12, 16, ... that is at least `length`: few shapes
    to compile, and never half of what is beyond the first unit empty."""
    size = unit
    while size < length:
        if size > unit and size * 3 // 2 >= length:
            return size * 3 // 2
        size *= 2
    return size


def require_decodable(config: ModelConfig, path: str = "config.model") -> None:
    """Raises ConfigError when what the model makes of a token depends on other tokens by more than
    attention: on later ones, or on the other rows of the batch.

    Such a model gives another result token by token than it gave in training, and another one in
    another batch. What a router declares (`causal`, `token_equivariant`) is what is judged here.
    """
    for moe in dict.fromkeys(config.plan()):
        if moe is None:
            continue
        router = moe.router
        name = registered_name(type(router)) or type(router).__name__
        if not router.causal:
            raise ConfigError(
                f"{path}.moe.router.name={name!r}: chooses among all tokens of a batch, later ones "
                "included; such a model cannot write token by token, nor be scored text by text"
            )
        if not router.token_equivariant:
            raise ConfigError(
                f"{path}.moe.router.name={name!r}: routes a token by its place in the batch; what "
                "such a model writes or scores would depend on the other texts of the batch"
            )
        if (bound := _bound(moe)) is not None:
            raise ConfigError(
                f"{path}.moe.capacity.{bound[0]}={bound[1]:g}: which experts a token loses "
                "depends on the other tokens of the batch; nearest valid value 0 (--lift_capacity: "
                "no token loses any)"
            )


def _bound(moe: MoeConfig) -> tuple[str, float] | None:
    capacity = moe.capacity
    for name in ("factor", "eval_factor", "row_budget"):
        if (value := getattr(capacity, name)) > 0:
            return name, value
    return None


def without_capacity(config: ModelConfig) -> ModelConfig:
    """The same model (and the same parameters) in which no expert turns a token away."""

    def lifted(moe: MoeConfig) -> MoeConfig:
        return dataclasses.replace(moe, capacity=CapacityConfig())

    return dataclasses.replace(
        config,
        moe=None if config.moe is None else lifted(config.moe),
        moe_variants={name: lifted(moe) for name, moe in config.moe_variants.items()},
    )
