"""What a model says about itself: metrics from a step's sums, arrays for the run directory.

`summarise` is jittable and runs inside the step; the `host_*` functions turn its arrays into the
NumPy arrays of `routing/STEP.npz` and `trace/STEP.npz` (docs/training.md lists them).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.config import counts
from moejax.routing.health import health
from moejax.routing.ledger import CAUSES

if TYPE_CHECKING:
    from moejax.models.transformer import Transformer

EMPTY_SLOT = 65535
"""What an empty slot looks like in a trace (uint16)."""


def summarise(model: Transformer, out: dict[str, Any]) -> dict[str, Any]:
    """Metrics of a whole batch from its sums (`Transformer.loss`'s second result).

    Returns float32 scalars `loss` (nats per target), `total_loss`, `aux/<name>` (scaled),
    `aux_raw/<name>`, `routing/<health>` (mean over MoE layers), and under `_routing` the raw
    statistics per MoE group, for `host_routing`.
    """
    loss = out["nll"] / jnp.maximum(out["targets"], 1.0)
    metrics = {"loss": loss, "total_loss": loss + sum(out["aux"].values(), jnp.zeros(()))}
    for kind in ("aux", "aux_raw"):
        metrics |= {f"{kind}/{name}": value for name, value in out[kind].items()}
    sums: dict[str, jax.Array] = {}
    layers: dict[str, int] = {}
    for group, stats in zip(model.groups, out["layers"], strict=True):
        for name, value_L in health(stats, group.widths).items():
            sums[name] = sums.get(name, jnp.zeros(())) + value_L.sum()
            layers[name] = layers.get(name, 0) + value_L.shape[0]
    metrics |= {f"routing/{name}": total / layers[name] for name, total in sums.items()}
    metrics["_routing"] = out["layers"]
    return metrics


def host_routing(model: Transformer, metrics: dict[str, Any]) -> dict[str, np.ndarray]:
    """Arrays of `routing/STEP.npz` from what `summarise` returned.

    Layers are in model order; experts are padded to the largest `E` (width -1, count 0).
    """
    num_layers = model.num_moe_layers
    experts = max((len(group.widths) for group in model.groups), default=0)
    arrays: dict[str, np.ndarray] = {
        "layers_L": np.asarray(moe_layers(model), np.int32),
        "width_LE": width_table(model),
        "count_LE": np.zeros((num_layers, experts), np.int64),
        "prob_LE": np.full((num_layers, experts), np.nan),
        "tokens_L": np.zeros(num_layers, np.int64),
        "requested_L": np.zeros(num_layers, np.int64),
        "kept_L": np.zeros(num_layers, np.int64),
        "active_L": np.zeros(num_layers),
        "active_width_L": np.zeros(num_layers),
        "entropy_L": np.full(num_layers, np.nan),
    }
    arrays |= {f"dropped_{cause}_L": np.zeros(num_layers, np.int64) for cause in CAUSES}
    row_of = {layer: row for row, layer in enumerate(moe_layers(model))}
    for group, stats in zip(model.groups, jax.device_get(metrics["_routing"]), strict=True):
        rows = [row_of[layer] for layer in group.layers]
        count = len(group.widths)
        tokens_L = np.maximum(np.asarray(stats.tokens, np.int64), 1)
        kept_LE = np.asarray(stats.kept_E, np.int64)
        arrays["tokens_L"][rows] = stats.tokens
        arrays["count_LE"][rows, :count] = kept_LE
        arrays["requested_L"][rows] = stats.ledger.requested
        arrays["kept_L"][rows] = stats.ledger.kept
        arrays["active_L"][rows] = kept_LE.sum(-1) / tokens_L
        arrays["active_width_L"][rows] = kept_LE @ np.asarray(group.widths) / tokens_L
        if stats.prob_E is not None:
            arrays["prob_LE"][rows, :count] = np.asarray(stats.prob_E) / tokens_L[:, None]
            arrays["entropy_L"][rows] = np.asarray(stats.entropy) / tokens_L
        for cause in CAUSES:
            arrays[f"dropped_{cause}_L"][rows] = getattr(stats.ledger, cause)
    return arrays


def host_trace(
    model: Transformer, trace: dict[str, Any], batch: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Arrays of `trace/STEP.npz` for one batch: valid tokens only, in row order.

    Args:
      trace: `out["trace"]` of `Transformer.loss(..., trace=True)`.
      batch: the host batch, with `token_class, frequency_rank, domain, language` beside the
        arrays that the model saw.
    """
    trace = jax.device_get(trace)
    valid_T = np.asarray(batch["segment_ids"]).reshape(-1) > 0
    slots = max((expert.shape[-1] for expert in trace["expert_LTK"]), default=0)
    num_tokens = int(valid_T.sum())
    expert_LTK = np.full((model.num_moe_layers, num_tokens, slots), EMPTY_SLOT, np.uint16)
    width_LT = np.zeros((model.num_moe_layers, num_tokens), np.int32)
    row_of = {layer: row for row, layer in enumerate(moe_layers(model))}
    for group, expert_GTK in zip(model.groups, trace["expert_LTK"], strict=True):
        rows = [row_of[layer] for layer in group.layers]
        expert_GTK = np.asarray(expert_GTK)[:, valid_T]
        filled = expert_GTK < len(group.widths)
        expert_LTK[rows, :, : expert_GTK.shape[-1]] = np.where(filled, expert_GTK, EMPTY_SLOT)
        width_E = np.asarray([*group.widths, 0], np.int32)
        width_LT[rows] = width_E[expert_GTK].sum(-1)
    nll_T = np.asarray(trace["nll_BS"], np.float32).reshape(-1)
    scored_T = np.asarray(batch["loss_mask"]).reshape(-1) > 0

    def flat(name: str, dtype: Any) -> np.ndarray:
        return np.asarray(batch[name]).reshape(-1)[valid_T].astype(dtype)

    return {
        "layers_L": np.asarray(moe_layers(model), np.int32),
        "width_LE": width_table(model),
        "expert_LTK": expert_LTK,
        "active_LT": (expert_LTK != EMPTY_SLOT).sum(-1).astype(np.uint16),
        "width_LT": width_LT,
        "token_T": flat("tokens", np.int32),
        "target_T": flat("targets", np.int32),
        "class_T": flat("token_class", np.uint8),
        "frequency_rank_T": flat("frequency_rank", np.int32),
        "domain_T": flat("domain", np.uint8),
        "language_T": flat("language", np.uint8),
        "position_T": flat("positions", np.int32),
        "loss_T": np.where(scored_T, nll_T, np.nan)[valid_T].astype(np.float32),
    }


def moe_layers(model: Transformer) -> list[int]:
    """Model indices of the MoE layers, in model order."""
    return sorted(layer for group in model.groups for layer in group.layers)


def width_table(model: Transformer) -> np.ndarray:
    """int32 `[L, E]` expert widths by MoE layer; -1 where a layer has no such expert."""
    experts = max((len(group.widths) for group in model.groups), default=0)
    table = np.full((model.num_moe_layers, experts), -1, np.int32)
    row_of = {layer: row for row, layer in enumerate(moe_layers(model))}
    for group in model.groups:
        for layer in group.layers:
            table[row_of[layer], : len(group.widths)] = group.widths
    return table


def describe(model: Transformer, seq_len: int) -> dict[str, Any]:
    """`model.json`: counts (docs/architecture.md states the convention) and layers."""
    shape = model.config.shape()
    numbers = counts.parameters(shape)
    return {
        "convention": counts.CONVENTION,
        "total_parameters": numbers.total,
        "trained_parameters": numbers.everything,
        "embedding_parameters": numbers.embedding + numbers.head,
        "active_parameters": numbers.active,
        "active_non_embedding_parameters": numbers.active_non_embedding,
        "flops_per_token": counts.flops_per_token(shape, seq_len),
        "flops_per_width": counts.flops_per_width(shape),
        "layers": [
            {
                "index": index,
                "kind": "moe" if layer.widths else "dense",
                "router": layer.router,
                "experts": len(layer.widths),
                "widths": list(layer.widths),
                "shared_width": layer.shared_width,
                "dense_width": layer.dense_width,
                "nominal_active_experts": layer.nominal_active,
                "nominal_active_width": layer.nominal_active_width,
            }
            for index, layer in enumerate(shape.layers)
        ],
    }
