"""Experts of different widths as equal ones: the same function, padded with zeros.

A gated or ungated FFN is a sum over its hidden units, and a unit whose down row is zero adds
nothing. So padding every expert to the widest one changes no output; it costs the parameters and
the products of the padding.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from moejax.config import ConfigError
from moejax.config.widths import WidthPlan
from moejax.experts.config import MoeConfig
from moejax.interop.links import Tree, layers
from moejax.models.config import ModelConfig
from moejax.models.segments import segments


def padded_config(model: ModelConfig) -> ModelConfig:
    """The model with every expert as wide as the widest of its layer.

    Raises:
      ConfigError: a layer has experts that compute nothing, which no width replaces.
    """

    def pad(moe: MoeConfig) -> MoeConfig:
        if moe.zero_compute.total:
            raise ConfigError("model.moe.zero_compute: such experts cannot be padded")
        return dataclasses.replace(moe, widths=WidthPlan(mean=max(moe.spec.widths)))

    variants = {name: pad(moe) for name, moe in model.moe_variants.items()}
    return dataclasses.replace(
        model, moe=None if model.moe is None else pad(model.moe), moe_variants=variants
    )


def pad_experts(model: ModelConfig, tree: Tree) -> tuple[ModelConfig, Tree, str]:
    """The padded model, its `{params, router_state}`, and what it costs in one line."""
    target = padded_config(model)
    if [len(s.pattern) * s.repeat for s in segments(target.plan())] != [
        len(s.pattern) * s.repeat for s in segments(model.plan())
    ]:
        raise ConfigError(
            "model.moe_variants: layers that differ in their widths alone become equal when they "
            "are padded, and lie elsewhere in the parameters; this is not supported"
        )
    padded: Tree = {"params": _copy(tree["params"]), "router_state": tree["router_state"]}
    before = after = 0
    for layer in layers(model):
        moe = model.plan()[layer.index]
        if moe is None:
            continue
        before += sum(moe.spec.widths)
        after += max(moe.spec.widths) * moe.num_experts
        if layer.repeat == 0:
            experts = layer("ffn", "experts").leaf(padded)
            for name, weight in experts.items():
                experts[name] = _pad(np.asarray(weight), moe)
    cost = (
        f"padded experts: {after / before:.2f} times their parameters, and every slot now costs as "
        "much as the widest expert's"
    )
    return target, padded, cost


def _copy(tree: Any) -> Any:
    """The same arrays in dicts of their own."""
    return {k: _copy(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def _pad(weight_LNUD: np.ndarray, moe: MoeConfig) -> np.ndarray:
    spec = moe.spec
    widest = max(spec.widths)
    repeat, _, _, d_model = weight_LNUD.shape
    padded = np.zeros((repeat, moe.num_experts, widest, d_model), weight_LNUD.dtype)
    for expert, (start, units) in enumerate(zip(spec.starts, spec.units, strict=True)):
        rows = weight_LNUD[:, start : start + units].reshape(repeat, -1, d_model)
        padded[:, expert, : rows.shape[1]] = rows
    return padded
