"""Experts removed from a trained model, so that it really is smaller (methods E, point 4).

Layers may keep different numbers of experts: each becomes a kind of layer of its own in the plan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from moejax.config import ConfigError, nearest
from moejax.experts.config import MoeConfig
from moejax.models.config import ModelConfig
from moejax.routing import LossesConfig
from moejax.routing.contract import Router
from moejax.routing.losses import LoadBalance
from moejax.routing.routers import FixedMasks
from moejax.surgery.blocks import (
    LayerOf,
    expert_rows,
    of_experts,
    plan_widths,
    put_together,
    take_apart,
    with_plan,
)
from moejax.surgery.layers import Tree

REMOVE, KEEP, ALL = "remove", "keep", "all"
ROUTERS_AFTER: dict[str, str] = {
    REMOVE: "the router loses the rows of the experts that go, and its rule chooses among the rest",
    KEEP: "the router stays: a choice that falls on an expert that went adds nothing",
    ALL: "there is no choice any more: every expert that is left is on, with weight 1",
}
"""What becomes of the router: `--router`."""


def prune(
    model: ModelConfig,
    tree: Tree,
    kept: Mapping[int, Sequence[int]],
    router: str = REMOVE,
) -> tuple[ModelConfig, Tree]:
    """The model without some of its experts.

    Args:
      model: its config.
      tree: its `{params, router_state}`.
      kept: by number of an MoE layer in the model, the experts that it keeps; a layer that is not
        named, or keeps all (and its router), stays as it is.
      router: a key of `ROUTERS_AFTER`. `remove` equals the model whose router sees minus infinity
        in the logits of the experts that went; `keep` equals the model whose slots with these
        experts are emptied after the choice, and leaves experts of width 0 behind, which hold
        nothing and compute nothing; `all` suits layers that were cut out of a dense FFN.

    Raises:
      ConfigError: a layer has no experts, or none is kept; an expert that there is not; a router
        whose rule means something else with fewer experts.
    """
    plan = model.plan()
    layers = take_apart(model, tree)
    for number, experts in kept.items():
        moe = _moe_of(plan, number)
        made = pruned_layer(moe, number, experts, router)
        layers[number] = _pruned(layers[number], moe, made, experts, router)
    try:
        return put_together(model, tree, layers, "pruned")
    except ValueError as error:
        raise ConfigError(
            f"--router={router}: the names of a router's arrays do not say where its experts are "
            f"({error}); nearest valid --router={KEEP}"
        ) from error


def removable(router: Router) -> str:
    """Why a router's rule cannot choose among fewer experts; "" if it can."""
    if not router.expert_equivariant:
        return "chooses by an expert's number, which would be another expert's"
    if router.carries:
        return "passes logits of all experts on to the next layer"
    if not router.causal:
        return "fills experts up to a share of all that there are"
    if getattr(router, "groups", 1) > 1:
        return "divides its experts into equal groups"
    return ""


def fitted(router: Router, experts: int) -> Router:
    """The router for so many experts: what asks for more of them asks for all."""
    changed = {
        name: experts
        for name in ("k", "k_min", "k_max", "most")
        if getattr(router, name, 0) > experts
    }
    return dataclasses.replace(router, **changed)


def pruned_config(
    model: ModelConfig, kept: Mapping[int, Sequence[int]], router: str = REMOVE
) -> ModelConfig:
    """The config that `prune` would give; arguments and errors as there."""
    plan = list(model.plan())
    for number, experts in kept.items():
        moe = _moe_of(plan, number)
        plan[number] = pruned_layer(moe, number, experts, router)
    return with_plan(model, tuple(plan), "pruned")


def pruned_layer(moe: MoeConfig, number: int, experts: Sequence[int], router: str) -> MoeConfig:
    """The config of one layer (`number` is for messages) with these experts left."""
    if router not in ROUTERS_AFTER:
        known = ", ".join(ROUTERS_AFTER)
        raise ConfigError(f"--router={router!r}: one of {known}{nearest(router, ROUTERS_AFTER)}")
    wanted = sorted(set(experts))
    if not wanted or wanted[0] < 0 or wanted[-1] >= moe.experts:
        raise ConfigError(
            f"layer {number}: keeps experts {wanted[:8]} of {moe.experts}; nearest valid: at least "
            f"one of 0 to {moe.experts - 1}"
        )
    widths, unit = moe.spec.widths, moe.spec.unit
    if not any(widths[expert] for expert in wanted):
        raise ConfigError(f"layer {number}: all experts that it would keep have width 0")
    if len(wanted) == moe.experts and router != ALL:
        return moe
    if router == KEEP:
        left = [widths[expert] if expert in wanted else 0 for expert in range(moe.experts)]
        return dataclasses.replace(moe, widths=plan_widths(left, unit))
    made = dataclasses.replace(
        moe,
        experts=len(wanted),
        widths=plan_widths([widths[expert] for expert in wanted], unit),
        router=_router(moe, number, len(wanted) + moe.zero_compute.total, router),
    )
    if router == ALL:
        return dataclasses.replace(made, losses=LossesConfig(LoadBalance(0.0)))
    return made


def _moe_of(plan: Sequence[MoeConfig | None], number: int) -> MoeConfig:
    moe = plan[number] if 0 <= number < len(plan) else None
    if moe is None:
        there = [i for i, one in enumerate(plan) if one is not None]
        raise ConfigError(f"layer {number}: has no experts to prune; layers that do: {there}")
    return moe


def _pruned(
    layer: LayerOf, moe: MoeConfig, made: MoeConfig, experts: Sequence[int], how: str
) -> LayerOf:
    """The arrays of a layer as its new config has them."""
    if made == moe:
        return layer
    wanted = sorted(set(experts))
    ffn = dict(layer.params["ffn"])
    ffn["experts"] = expert_rows(moe, ffn["experts"], wanted, moe.spec.unit)
    if how == KEEP:
        return layer.with_ffn(made, ffn, layer.router_state)
    if how == ALL:
        router, state = no_choice(next(iter(ffn["experts"].values())).shape[-1], len(wanted))
        return layer.with_ffn(made, ffn | {"router": router}, state)
    # Experts that compute nothing come behind the others, and stay.
    chosen_from = [*wanted, *range(moe.experts, moe.num_experts)]
    router = of_experts(ffn.get("router", {}), chosen_from)
    ffn = {**ffn, "router": router} if router else ffn
    return layer.with_ffn(made, ffn, of_experts(layer.router_state, chosen_from))


def no_choice(d_model: int, experts: int) -> tuple[Tree, Tree]:
    """Parameters and state of `FixedMasks(masks=1)`: every expert on."""
    params = {"choose_DM": np.zeros((d_model, 1), np.float32)}
    return params, {"member_ME": np.ones((1, experts), np.float32)}


def _router(moe: MoeConfig, number: int, experts: int, how: str) -> Router:
    if how == ALL:
        if moe.zero_compute.total:
            raise ConfigError(
                f"layer {number}: --router={ALL} would always add its experts that compute "
                f"nothing; nearest valid --router={REMOVE}"
            )
        return FixedMasks(masks=1)
    if reason := removable(moe.router):
        name = getattr(moe.router, "registered_name", type(moe.router).__name__)
        raise ConfigError(
            f"layer {number}: the router {name} {reason}; nearest valid --router={KEEP}"
        )
    return fitted(moe.router, experts)


def magnitude(model: ModelConfig, tree: Tree) -> NDArray[np.float64]:
    """float64 `[L, E]`: root mean square of an expert's weights, all its matrices together.

    NaN where the layer has no such expert or it has width 0. Per weight, so that a wide expert is
    not important for its width alone.
    """
    layers = [layer for layer in take_apart(model, tree) if layer.moe is not None]
    experts = max((layer.moe.experts for layer in layers if layer.moe), default=0)
    found_LE = np.full((len(layers), experts), np.nan)
    for row, layer in enumerate(layers):
        assert layer.moe is not None
        spec = layer.moe.spec
        weights = layer.params["ffn"]["experts"].values()
        for expert, (start, units) in enumerate(zip(spec.starts, spec.units, strict=True)):
            if units:
                own = [np.asarray(w[start : start + units], np.float64) for w in weights]
                found_LE[row, expert] = np.sqrt(np.mean([np.square(w).mean() for w in own]))
    return found_LE
