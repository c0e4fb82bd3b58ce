"""Layers that become different from each other: taken out, changed one by one, put back.

A layer that changes becomes a kind of its own in the plan (`model.layers`, `model.moe_variants`);
layers that are still equal share one, and are scanned together as ever.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from moejax.config.widths import WidthPlan
from moejax.experts.config import MoeConfig
from moejax.models.config import ModelConfig
from moejax.models.segments import Plan
from moejax.surgery.layers import Tree, assemble, take_layers


@dataclasses.dataclass(frozen=True)
class LayerOf:
    """One layer of a model.

    Attributes:
      moe: its config; None: a dense layer.
      params, state: parameters and router state of its block, NumPy, without a layer axis.
    """

    moe: MoeConfig | None
    params: Tree
    state: Tree

    @property
    def router_state(self) -> Tree:
        """The state of its router; {} if it has none."""
        found: Tree = self.state.get("ffn", {}).get("router_state", {})
        return found

    def with_ffn(self, moe: MoeConfig, ffn: Tree, router_state: Tree) -> LayerOf:
        """The layer with another MoE layer behind its attention."""
        state = {**self.state, "ffn": {"router_state": router_state}} if router_state else {}
        return LayerOf(moe, {**self.params, "ffn": ffn}, state)


def take_apart(model: ModelConfig, tree: Tree) -> list[LayerOf]:
    """The layers of a model, in order."""
    params, states = (
        take_layers(model, tree[kind]["segments"]) for kind in ("params", "router_state")
    )
    return [LayerOf(*one) for one in zip(model.plan(), params, states, strict=True)]


def put_together(
    model: ModelConfig, tree: Tree, layers: Sequence[LayerOf], name: str
) -> tuple[ModelConfig, Tree]:
    """The model with these layers in place of its own; embedding, head and last norm stay.

    Kinds of MoE layers are called `NAME_0`, `NAME_1`, ... in the order in which they first occur.

    Raises:
      ValueError: a layer's arrays are not those that its config makes.
    """
    config = with_plan(model, tuple(layer.moe for layer in layers), name)
    blocks, states = [layer.params for layer in layers], [layer.state for layer in layers]
    return config, assemble(config, tree["params"], blocks, states)


def with_plan(model: ModelConfig, plan: Plan, name: str) -> ModelConfig:
    """The model with this FFN in each of its layers."""
    kinds = list(dict.fromkeys(moe for moe in plan if moe is not None))
    names = {moe: f"{name}_{number}" for number, moe in enumerate(kinds)}
    return dataclasses.replace(
        model,
        moe=None,
        first_dense=0,
        moe_every=1,
        layers=tuple("dense" if moe is None else names[moe] for moe in plan),
        moe_variants={names[moe]: moe for moe in kinds},
    )


def expert_rows(moe: MoeConfig, weights: Tree, experts: Sequence[int], unit: int) -> Tree:
    """The hidden units of some experts of a layer, in the order of `experts`, as arrays
    `[N', unit, D]`."""
    spec = moe.spec
    units = [spec.starts[e] + u for e in experts for u in range(spec.units[e])]
    made: dict[str, Any] = {}
    for name, weight_NUD in weights.items():
        chosen = np.asarray(weight_NUD)[units]
        made[name] = chosen.reshape(-1, unit, chosen.shape[-1])
    return made


def of_experts(arrays: Tree, experts: Sequence[int]) -> Tree:
    """The arrays of a router with these experts only: axes are known by the letter `E` behind the
    last underscore of their names (`w_DE`, `bias_E`)."""
    made: Tree = {}
    for name, value in arrays.items():
        if isinstance(value, dict):
            made[name] = of_experts(value, experts)
            continue
        _, underscore, axes = name.rpartition("_")
        array = np.asarray(value)
        if underscore and "E" in axes and len(axes) == array.ndim:
            array = np.take(array, list(experts), axis=axes.index("E"))
        made[name] = array
    return made


def plan_widths(widths: Sequence[int], unit: int = 0) -> WidthPlan:
    """The plan that says these widths; `unit` 0: as large as it can be."""
    if len(set(widths)) == 1:
        return WidthPlan(mean=widths[0], unit=unit)
    return WidthPlan("explicit", unit=unit, explicit=tuple(widths))
