"""The language model as pure functions of pure dicts."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.config.compose import check
from moejax.config.counts import ModelShape
from moejax.experts.config import MoeConfig
from moejax.experts.exchange.placement import Placement
from moejax.experts.exchange.sharded import Parallel
from moejax.models import metrics
from moejax.models.block import BlockOut, Observe, Tokens
from moejax.models.config import ModelConfig
from moejax.models.cross_entropy import sharded_cross_entropy
from moejax.models.norm import RMSNorm
from moejax.models.segments import segments
from moejax.models.stack import SegmentStack
from moejax.routing.losses import SCOPES
from moejax.routing.stats import RoutingStats
from moejax.sharding import constrain_rows

Tree = dict[str, Any]
Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class MoeGroup:
    """The MoE layers that share one config: losses and statistics are computed group-wise.

    Attributes:
      config: what the layers are.
      layers: their model layer indices, in the order in which statistics are stacked.
      places: `(segment, position)` of the blocks, in the same order.
    """

    config: MoeConfig
    layers: tuple[int, ...]
    places: tuple[tuple[int, int], ...]

    @property
    def widths(self) -> tuple[int, ...]:
        return self.config.spec.widths


class Transformer:
    """Decoder-only language model: `init`, `hidden`, `loss`, all pure.

    Parameters are a nested dict `{embed, segments, final_norm, head?}`; blocks of a segment are
    stacked along a leading layer axis.

    Args:
      config: what it is.
      parallel: the mesh that it runs on; None: one device.

    Raises:
      ConfigError: the config is impossible.
    """

    def __init__(self, config: ModelConfig, parallel: Parallel | None = None) -> None:
        check(config, "model")
        self.config = config
        self.parallel = parallel
        self.mesh = None if parallel is None else parallel.mesh
        self.segments = tuple(SegmentStack(config, s, parallel) for s in segments(config.plan()))
        self.groups = _groups(self.segments)
        self.num_moe_layers = sum(len(group.layers) for group in self.groups)

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Parameters and router state, pure nested dicts."""
        config = self.config
        embed_key, head_key, stack_key = jax.random.split(key, 3)
        shape, dtype = (config.vocab_size, config.d_model), config.dtypes[0]
        # A table that is the head (also) should start with logits of order one; a branch sees
        # embeddings through its RMSNorm, whatever their scale.
        std = config.d_model**-0.5
        params: Tree = {
            "embed": {
                "table_VD": (jax.random.normal(embed_key, shape) * std).astype(dtype),
            },
            "final_norm": {"scale_D": jnp.ones(config.d_model, dtype)},
            "segments": {},
        }
        if not config.tied_embeddings:
            head = jax.random.normal(head_key, shape) * std
            params["head"] = {"table_VD": head.astype(dtype)}
        state: Tree = {"segments": {}}
        for index, stack in enumerate(self.segments):
            own = jax.random.fold_in(stack_key, index)
            params["segments"][str(index)], state["segments"][str(index)] = stack.init(own)
        return params, state

    def hidden(
        self,
        params: Tree,
        router_state: Tree,
        tokens: Tokens,
        key: jax.Array | None = None,
        *,
        train: bool = False,
        caches: list[Tree] | None = None,
        observe: Observe | None = None,
        edits: list[Tree] | None = None,
    ) -> tuple[jax.Array, list[list[BlockOut]]]:
        """Final normalised hidden states `[B, S, D]` and the block outputs by segment.

        `observe` is called in every MoE layer; what it returns is `BlockOut.observed`. `edits` are
        changes of the routing, by segment and position (`SegmentStack.apply`).
        """
        dtype = self.config.dtypes[1]
        x_BSD = params["embed"]["table_VD"][tokens.token_id_BS].astype(dtype)
        x_BSD = constrain_rows(x_BSD, self.mesh)
        outs = []
        for index, stack in enumerate(self.segments):
            x_BSD, out = stack.apply(
                params["segments"][str(index)],
                router_state["segments"][str(index)],
                x_BSD,
                tokens,
                key=None if key is None else jax.random.fold_in(key, index),
                train=train,
                caches=None if caches is None else caches[index],
                observe=observe,
                edits=None if edits is None else edits[index],
            )
            outs.append(out)
        norm = RMSNorm(self.config.d_model, self.config.norm_eps)
        norm.scale_D[...] = params["final_norm"]["scale_D"]
        return norm(x_BSD), outs

    def head_table(self, params: Tree) -> jax.Array:
        """`[V, D]` output embedding in the compute dtype."""
        owner = "embed" if self.config.tied_embeddings else "head"
        return params[owner]["table_VD"].astype(self.config.dtypes[1])

    def decode(
        self, params: Tree, router_state: Tree, tokens: Tokens, caches: list[Tree]
    ) -> tuple[jax.Array, list[Tree]]:
        """Logits `[B, S, V]` (float32) of new tokens after what the caches hold, new caches."""
        x_BSD, outs = self.hidden(params, router_state, tokens, caches=caches)
        caches = [
            {str(position): out.cache for position, out in enumerate(segment)} for segment in outs
        ]
        table_VD = self.head_table(params)
        logits = jnp.einsum("bsd,vd->bsv", x_BSD, table_VD, preferred_element_type=jnp.float32)
        return logits, caches

    def empty_caches(self, batch: int, capacity: int) -> list[Tree]:
        """Key-value caches with room for `capacity` tokens, for `decode`."""
        return [stack.caches(batch, capacity) for stack in self.segments]

    def denominators(self, batch: Batch) -> dict[str, jax.Array]:
        """What losses of the *whole* batch are divided by, so that micro-batches simply add."""
        return {
            "targets": jnp.maximum(batch["loss_mask"].sum(dtype=jnp.float32), 1.0),
            "tokens": jnp.maximum((batch["segment_ids"] > 0).sum(dtype=jnp.float32), 1.0),
        }

    def loss(
        self,
        params: Tree,
        router_state: Tree,
        batch: Batch,
        key: jax.Array | None,
        *,
        denominators: dict[str, jax.Array],
        train: bool,
        trace: bool = False,
        defer_global: bool = False,
    ) -> tuple[jax.Array, Tree]:
        """This (micro-)batch's share of the training loss, and everything to report.

        Args:
          batch: `tokens, targets, segment_ids, positions` int32 and `loss_mask` float32, `[B, S]`.
          key: for stochastic routers; None makes them deterministic.
          denominators: of the whole batch (`denominators(batch)`).
          trace: also return `expert_LTK` and `nll_BS`.
          defer_global: leave out the losses of scope `global` and let gradients into `layers`: the
            caller adds `layers` over micro-batches and calls `global_losses` on the sum.

        Returns:
          float32 scalar, and a dict of sums that add over micro-batches: `nll`, `targets`,
          `aux` (scaled) and `aux_raw` losses by name, `layers` (RoutingStats per MoE group),
          and `trace` on request. Losses of scope `micro` and `sequence` are computed on the
          statistics of the micro-batch at hand and weighted by its tokens.
        """
        tokens = Tokens(batch["tokens"], batch["positions"], batch["segment_ids"], self.mesh)
        x_BSD, outs = self.hidden(params, router_state, tokens, key, train=train)
        nll, nll_BS = sharded_cross_entropy(
            x_BSD,
            self.head_table(params),
            batch["targets"],
            batch["loss_mask"],
            mesh=self.mesh,
            chunk=self.config.loss_chunk,
            logits_dtype=self.config.dtypes[2],
        )
        layers = self.by_group(outs, "stats")
        share = (batch["segment_ids"] > 0).sum(dtype=jnp.float32) / denominators["tokens"]
        scopes = ("micro", "sequence") if defer_global else SCOPES
        aux, aux_raw = self._auxiliary(layers, share, scopes)
        for name, value in self._routers_own(layers, router_state, scopes).items():
            aux[name] = aux.get(name, jnp.zeros((), jnp.float32)) + share * value
        out: Tree = {
            "nll": nll,
            "targets": batch["loss_mask"].sum(dtype=jnp.float32),
            "aux": aux,
            "aux_raw": aux_raw,
            "layers": layers,
        }
        if trace:
            out["trace"] = {
                "expert_LTK": self.by_group(outs, "expert_TK"),
                "nll_BS": nll_BS,
            }
        total = nll / denominators["targets"] + sum(aux.values(), jnp.zeros((), jnp.float32))
        return total, out if defer_global else jax.lax.stop_gradient(out)

    def by_group(self, outs: list[list[BlockOut]], field: str) -> tuple[Any, ...]:
        """A field of the block outputs for each of `groups`, its layers along a leading axis."""
        return tuple(_gather(group, outs, field) for group in self.groups)

    @property
    def has_global_losses(self) -> bool:
        """Whether some loss compares loads over all micro-batches of a step."""
        return any(
            group.config.losses.coefficients("global")
            or group.config.router.auxiliary_scope == "global"
            for group in self.groups
        )

    def global_losses(self, router_state: Tree, out: Tree) -> tuple[jax.Array, Tree]:
        """Losses of scope `global` from the sums of all micro-batches.

        Args:
          router_state: as given to `loss`.
          out: second result of `loss(..., defer_global=True)`, added over micro-batches.

        Returns:
          What to add to the loss, and `out` with these losses in `aux` and `aux_raw`; no gradient
          flows into the latter.
        """
        layers, scopes = out["layers"], ("global",)
        aux, raw = self._auxiliary(layers, jnp.ones((), jnp.float32), scopes)
        aux |= self._routers_own(layers, router_state, scopes)
        total = sum(aux.values(), jnp.zeros((), jnp.float32))
        for kind, found in (("aux", aux), ("aux_raw", raw)):
            # Another group may have a loss of the same name and another scope.
            both = {name: out[kind].get(name, 0.0) + value for name, value in found.items()}
            out = out | {kind: out[kind] | both}
        return total, jax.lax.stop_gradient(out)

    def _auxiliary(
        self, layers: tuple[RoutingStats, ...], share: jax.Array, scopes: tuple[str, ...]
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Scaled and raw auxiliary losses: mean over all MoE layers, times this batch's share."""
        aux: dict[str, jax.Array] = {}
        raw: dict[str, jax.Array] = {}
        for group, stats in zip(self.groups, layers, strict=True):
            losses = group.config.losses
            weight = share * (len(group.layers) / self.num_moe_layers)
            coefficients: dict[str, float] = {}
            for scope in scopes:
                coefficients |= losses.coefficients(scope)
            for name, value in losses.values(stats, group.widths, coefficients).items():
                zero = jnp.zeros((), jnp.float32)
                raw[name] = raw.get(name, zero) + weight * value
                aux[name] = aux.get(name, zero) + weight * coefficients[name] * value
        return aux, raw

    def _routers_own(
        self, layers: tuple[RoutingStats, ...], router_state: Tree, scopes: tuple[str, ...]
    ) -> dict[str, jax.Array]:
        """Losses that routers bring themselves, scaled, mean over all MoE layers."""
        found: dict[str, jax.Array] = {}
        for group, stats in zip(self.groups, layers, strict=True):
            if group.config.router.auxiliary_scope not in scopes:
                continue
            state = self._group_state(group, router_state)
            weight = len(group.layers) / self.num_moe_layers
            for name, value in group.config.router.auxiliary(stats, state).items():
                found[name] = found.get(name, jnp.zeros((), jnp.float32)) + weight * value
        return found

    def update_router_state(self, router_state: Tree, out: Tree) -> Tree:
        """Router state after one optimiser step; `out` are the sums of the whole batch."""
        state = jax.tree.map(lambda leaf: leaf, router_state)
        for group, stats in zip(self.groups, out["layers"], strict=True):
            old = self._group_state(group, state)
            new = group.config.router.update_state(old, stats)
            offset = 0
            for segment, position in group.places if old else ():
                rows = slice(offset, offset + self.segments[segment].segment.repeat)
                offset = rows.stop
                block = state["segments"][str(segment)][str(position)]
                block["ffn"]["router_state"] = jax.tree.map(operator.itemgetter(rows), new)
        return state

    def _group_state(self, group: MoeGroup, router_state: Tree) -> Tree:
        """The router state of all layers of a group, stacked along a leading layer axis."""
        parts = []
        for segment, position in group.places:
            block = router_state["segments"][str(segment)].get(str(position), {})
            parts.append(block.get("ffn", {}).get("router_state", {}))
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    def placements(self) -> dict[tuple[str, str], Placement]:
        """On a mesh, where the experts of each MoE block are, by segment and position."""
        found = {}
        for index, stack in enumerate(self.segments):
            for position, moe in enumerate(stack.segment.pattern):
                if moe is not None and self.parallel is not None:
                    found[str(index), str(position)] = self.parallel.placement(moe.spec)
        return found

    def shape(self) -> ModelShape:
        """What the analytic counts need."""
        return self.config.shape()

    def summarise(self, out: Tree) -> Tree:
        """Metrics of a whole batch from its sums; see `moejax.models.metrics.summarise`."""
        return metrics.summarise(self, out)

    def host_routing(self, summary: Tree) -> dict[str, np.ndarray]:
        """Arrays of `routing/STEP.npz`; see `moejax.models.metrics.host_routing`."""
        return metrics.host_routing(self, summary)

    def host_trace(self, trace: Tree, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays of `trace/STEP.npz`; see `moejax.models.metrics.host_trace`."""
        return metrics.host_trace(self, trace, batch)

    def describe(self, seq_len: int) -> Tree:
        """`model.json`: counts and layers; see `moejax.models.metrics.describe`."""
        return metrics.describe(self, seq_len)


def _groups(stacks: tuple[SegmentStack, ...]) -> tuple[MoeGroup, ...]:
    found: dict[MoeConfig, tuple[list[int], list[tuple[int, int]]]] = {}
    for index, stack in enumerate(stacks):
        for position, moe in enumerate(stack.segment.pattern):
            if moe is not None:
                layers, places = found.setdefault(moe, ([], []))
                layers.extend(stack.segment.layers(position))
                places.append((index, position))
    return tuple(
        MoeGroup(moe, tuple(layers), tuple(places)) for moe, (layers, places) in found.items()
    )


def _gather(group: MoeGroup, outs: list[list[BlockOut]], field: str) -> Any:
    """A block output of all layers of a group, concatenated along the layer axis."""
    parts = [getattr(outs[segment][position], field) for segment, position in group.places]
    if len(parts) == 1:
        return parts[0]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
