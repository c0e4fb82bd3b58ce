"""The stack of blocks: stacked parameters, one initialisation for all, scanned application."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from moejax.experts.config import MoeConfig
from moejax.experts.exchange.sharded import Parallel
from moejax.experts.layer import RouterState
from moejax.models.block import Block, BlockOut, Observe, Tokens
from moejax.models.config import ModelConfig
from moejax.models.remat import rematerialise
from moejax.models.segments import Segment
from moejax.sharding import constrain_rows

Tree = dict[str, Any]


class BlockFunctions:
    """A block as pure functions of dicts: NNX used functionally (split once, merge inside)."""

    def __init__(
        self, config: ModelConfig, moe: MoeConfig | None, parallel: Parallel | None
    ) -> None:
        self._new = functools.partial(Block, config, moe, parallel=parallel)
        abstract = nnx.eval_shape(lambda: self._new(rngs=nnx.Rngs(0)))
        self._graph, *self._templates = nnx.split(abstract, nnx.Param, RouterState)

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Parameters and router state of one block."""
        block = self._new(rngs=nnx.Rngs(key))
        _, *states = nnx.split(block, nnx.Param, RouterState)
        params, router_state = (nnx.to_pure_dict(state) for state in states)
        return params, router_state

    def apply(
        self, params: Tree, state: Tree, *args: Any, **kwargs: Any
    ) -> tuple[jax.Array, BlockOut]:
        """Calls the block with these parameters."""
        return self.merged(params, state)(*args, **kwargs)

    def merged(self, params: Tree, state: Tree) -> Block:
        """The block as a module with these parameters."""
        filled = []
        for template, pure in zip(self._templates, (params, state), strict=True):
            copy = jax.tree.map(lambda leaf: leaf, template)
            nnx.replace_by_pure_dict(copy, pure)
            filled.append(copy)
        return nnx.merge(self._graph, *filled)


class SegmentStack:
    """The blocks of one segment, `repeat` times their pattern."""

    def __init__(
        self, config: ModelConfig, segment: Segment, parallel: Parallel | None = None
    ) -> None:
        self.config, self.segment = config, segment
        self.mesh = None if parallel is None else parallel.mesh
        self.blocks = [BlockFunctions(config, moe, parallel) for moe in segment.pattern]

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Parameters and router state with a leading `repeat` axis, keyed by pattern position."""
        params, state = {}, {}
        for position, block in enumerate(self.blocks):
            keys = jax.random.split(jax.random.fold_in(key, position), self.segment.repeat)
            # Not vmap: the same numbers, but threefry with a batch of keys compiles half as fast.
            params[str(position)], state[str(position)] = jax.lax.map(block.init, keys)
        return params, state

    def apply(
        self,
        params: Tree,
        state: Tree,
        x_BSD: jax.Array,
        tokens: Tokens,
        *,
        key: jax.Array | None,
        train: bool,
        caches: Tree | None = None,
        observe: Observe | None = None,
        edits: Tree | None = None,
    ) -> tuple[jax.Array, list[BlockOut]]:
        """Runs the segment; block outputs come back stacked `[repeat, ...]`, one per position.

        A router's carry passes from MoE layer to MoE layer inside a segment and starts at zero.
        An edit (an `EditRouting` that is a pytree) has a leading `repeat` axis on its arrays, like
        parameters; a position without one routes as it is.
        """

        def period(carry: Any, layer: Any) -> tuple[Any, list[BlockOut]]:
            x_BSD, carry_TE = carry
            params, state, key, caches, edits = layer
            outs = []
            for position, block in enumerate(self.blocks):
                name = str(position)

                def apply(
                    params: Tree,
                    state: Tree,
                    x_BSD: Any,
                    carry_TE: Any,
                    key: Any,
                    cache: Any,
                    edit: Any,
                ) -> Any:
                    return block.apply(  # noqa: B023 - called in this iteration only
                        params,
                        state,
                        x_BSD,
                        tokens,
                        key=key,
                        carry_TE=carry_TE,
                        cache=cache,
                        train=train,
                        observe=observe,
                        edit=edit,
                    )

                own_key = None if key is None else jax.random.fold_in(key, position)
                x_BSD, out = rematerialise(apply, self.config.remat)(
                    params[name],
                    state.get(name, {}),
                    x_BSD,
                    carry_TE,
                    own_key,
                    None if caches is None else caches[name],
                    None if edits is None else edits.get(name),
                )
                x_BSD = constrain_rows(x_BSD, self.mesh)
                carry_TE = out.carry_TE
                if carry_TE is not None:
                    carry_TE = constrain_rows(carry_TE, self.mesh)
                outs.append(out._replace(carry_TE=None))
            return (x_BSD, carry_TE), outs

        keys = None if key is None else jax.random.split(key, self.segment.repeat)
        layers = (params, state, keys, caches, edits)
        carry = (x_BSD, self._first_carry(x_BSD))
        if self.config.scan and self.segment.repeat > 1:
            (x_BSD, _), outs = jax.lax.scan(period, carry, layers)
            return x_BSD, outs
        per_layer = []
        for index in range(self.segment.repeat):
            carry, outs = period(carry, jax.tree.map(lambda leaf: leaf[index], layers))  # noqa: B023
            per_layer.append(outs)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *per_layer)
        return carry[0], stacked

    def _first_carry(self, x_BSD: jax.Array) -> jax.Array | None:
        for moe in self.segment.pattern:
            if moe is not None and moe.router.carries:
                return jnp.zeros((x_BSD.shape[0] * x_BSD.shape[1], moe.num_experts), jnp.float32)
        return None

    def caches(self, batch: int, capacity: int) -> Tree:
        """Empty caches of the attention layers, stacked like the parameters."""
        one = self.config.attention.empty_cache(
            self.config.d_model, batch, capacity, self.config.dtypes[1]
        )
        stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * self.segment.repeat), one)
        return {str(position): stacked for position in range(len(self.blocks))}
