"""The fine-tuning methods by name: `full`, `partial`, `esft`, `lora`, `multilora`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from moejax.config.knobs import ConfigError, knob
from moejax.finetune.adapter import Stored
from moejax.finetune.leaves import Leaf, Tree, leaves_of
from moejax.finetune.lowrank import LowRank, Shape, update_of
from moejax.finetune.slices import Rows, Slices
from moejax.train.tuning import METHODS

WHERE = "config.finetune.method"
"""Where a run's config has its method, for messages."""

TARGETS = ("attention", "dense", "routed", "shared", "router")
"""Roles whose matrices may get low-rank updates: all but embeddings and head (ESFT's LoRA)."""


@METHODS.register("full")
@dataclasses.dataclass(frozen=True)
class Full(Stored):
    """Everything is trained."""

    def plan(self, model: Any, abstract_params: Tree) -> Slices:
        whole: dict[str, Rows] = dict.fromkeys(leaves_of(model, abstract_params), ())
        return Slices(abstract_params, whole, routes=True)


@METHODS.register("partial")
@dataclasses.dataclass(frozen=True)
class Partial(Stored):
    """Only the top layers are trained."""

    top_layers: int = knob(1, unit="layers", doc="Trained layers, counted from the last.", low=1)
    head: bool = knob(False, doc="Also the final norm and the head.")

    def plan(self, model: Any, abstract_params: Tree) -> Slices:
        total = model.config.num_layers
        if self.top_layers > total:
            raise ConfigError(
                f"{WHERE}.top_layers={self.top_layers}: the model has {total} layers; nearest "
                f"valid value {total}"
            )
        if self.head and model.config.tied_embeddings:
            raise ConfigError(
                f"{WHERE}.head=True: the head of this model is its embedding; nearest valid value "
                "False"
            )
        leaves = leaves_of(model, abstract_params)
        chosen: dict[str, Rows] = {}
        for path, leaf in leaves.items():
            above = [row for row, n in enumerate(leaf.layers) if n >= total - self.top_layers]
            if len(above) == len(leaf.layers):
                if leaf.layers or (self.head and path.split("/")[0] in ("head", "final_norm")):
                    chosen[path] = ()
            elif above:
                chosen[path] = (np.asarray(above, np.int32),)
        # Of a model with some of its routers trained, the state of the others must not move.
        routers = [path for path, leaf in leaves.items() if leaf.role == "router"]
        routes = bool(routers) and all(chosen.get(path) == () for path in routers)
        return Slices(abstract_params, chosen, routes)


@METHODS.register("esft")
@dataclasses.dataclass(frozen=True)
class ESFT(Stored):
    """Expert-specialised fine-tuning (Wang et al. 2024, 2407.01906): chosen routed experts are
    trained, and whole roles on request; the paper's best choice is experts alone (table 3)."""

    experts: dict[str, tuple[int, ...]] = knob(
        {}, doc="Trained experts of each MoE layer, by its number in the model.", low=0
    )
    shared_experts: bool = knob(False, doc="Also all shared experts.")
    router: bool = knob(False, doc="Also routers and gates.")
    attention: bool = knob(False, doc="Also attention.")
    norms: bool = knob(False, doc="Also norms.")
    dense: bool = knob(False, doc="Also the FFNs of layers without experts.")
    embeddings: bool = knob(False, doc="Also embedding and head.")

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of which everything is trained."""
        return tuple(
            role
            for role, wanted in (
                ("shared", self.shared_experts),
                ("router", self.router),
                ("attention", self.attention),
                ("norms", self.norms),
                ("dense", self.dense),
                ("embeddings", self.embeddings),
            )
            if wanted
        )

    def validate(self, path: str) -> None:
        """Raises ConfigError for a layer that is no number, an expert named twice, or when nothing
        is chosen at all."""
        for layer, experts in self.experts.items():
            if not layer.isdecimal() or str(int(layer)) != layer:
                raise ConfigError(
                    f"{path}.experts: {layer!r} is not the number of a layer, counted from 0"
                )
            twice = next((e for i, e in enumerate(experts) if e in experts[:i]), None)
            if twice is not None:
                raise ConfigError(f"{path}.experts.{layer}: expert {twice} is named twice")
        if not any(self.experts.values()) and not self.roles:
            raise ConfigError(f"{path}.experts: no expert is chosen, and nothing else is trained")

    def plan(self, model: Any, abstract_params: Tree) -> Slices:
        self.validate(WHERE)
        check_experts(self.experts, model, f"{WHERE}.experts")
        leaves = leaves_of(model, abstract_params)
        chosen: dict[str, Rows] = {}
        for path, leaf in leaves.items():
            if leaf.role in self.roles:
                chosen[path] = ()
            elif leaf.role == "routed":
                rows = expert_slices(leaf, self.experts)
                if len(rows[0]):
                    chosen[path] = rows
        if not chosen:
            raise ConfigError(f"{WHERE}: the model has nothing of {', '.join(self.roles)}")
        return Slices(abstract_params, chosen, routes=self.router)


@dataclasses.dataclass(frozen=True)
class _LowRankMethod(Stored):
    """What LoRA and MultiLoRA share."""

    rank: int = knob(8, unit="dimensions", doc="Rank of each module (r).", low=1)
    alpha: float = knob(
        16.0, doc="Updates are scaled by alpha / rank (ESFT's LoRA: 2).", low=0.0, low_open=True
    )
    targets: tuple[str, ...] = knob(
        (),
        doc="Roles whose matrices are updated; none: all that the model has, embeddings and head "
        "aside.",
        choices=TARGETS,
    )
    per_expert: bool = knob(
        True,
        doc="Each routed expert has factors of its own; False: the experts of a layer share the "
        "factor on the side of the model width.",
    )

    def plan(self, model: Any, abstract_params: Tree) -> LowRank:
        matrices = [
            leaf
            for leaf in leaves_of(model, abstract_params).values()
            if leaf.is_matrix and leaf.role in TARGETS
        ]
        roles = {leaf.role for leaf in matrices}
        for target in self.targets:
            if target not in roles:
                raise ConfigError(
                    f"{WHERE}.targets={list(self.targets)}: the model has no matrix of "
                    f"{target!r}; it has {', '.join(sorted(roles))}"
                )
        wanted = set(self.targets or roles)
        updates = {
            leaf.path: update_of(leaf, self.per_expert) for leaf in matrices if leaf.role in wanted
        }
        return LowRank(abstract_params, updates, self._shape(), routes="router" in wanted)

    def _shape(self) -> Shape:
        return Shape(self.rank, 1, self.alpha)


@METHODS.register("lora")
@dataclasses.dataclass(frozen=True)
class LoRA(_LowRankMethod):
    """Low-rank adaptation (Hu et al. 2021, 2106.09685)."""


@METHODS.register("multilora")
@dataclasses.dataclass(frozen=True)
class MultiLoRA(_LowRankMethod):
    """Several low-rank modules side by side, each output scaled by learned numbers that start at
    zero (Wang et al. 2023, 2311.11501)."""

    modules: int = knob(3, unit="modules", doc="Modules that add up (n).", low=1)

    def _shape(self) -> Shape:
        return Shape(self.rank, self.modules, self.alpha, scaled=True)


def expert_slices(leaf: Leaf, experts: dict[str, tuple[int, ...]]) -> Rows:
    """The units of chosen experts in an array of routed experts: layers, and units in them, as the
    model holds them; in the order of layers, experts and hidden units."""
    pairs = [
        (row, unit)
        for row, layer in enumerate(leaf.layers)
        for expert in sorted(experts.get(str(layer), ()))
        for unit in leaf.units_of(expert)
    ]
    table = np.asarray(pairs, np.int32).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def check_experts(experts: dict[str, tuple[int, ...]], model: Any, path: str) -> None:
    """Raises ConfigError for a layer that the model lacks or that is dense, and for an expert that
    its layer lacks or that has no weights."""
    plan = model.config.plan()
    moe_layers = [number for number, moe in enumerate(plan) if moe is not None]
    for name, chosen in experts.items():
        layer = int(name)
        if layer >= len(plan):
            raise ConfigError(
                f"{path}.{name}: the model has {len(plan)} layers, 0 to {len(plan) - 1}; nearest "
                f"valid value {len(plan) - 1}"
            )
        moe = plan[layer]
        if moe is None:
            near = min(moe_layers, key=lambda other: abs(other - layer), default=None)
            hint = "it has no experts at all" if near is None else f"nearest MoE layer {near}"
            raise ConfigError(f"{path}.{name}: layer {layer} of the model is dense; {hint}")
        widths = moe.spec.widths
        for expert in chosen:
            if not 0 <= expert < len(widths):
                raise ConfigError(
                    f"{path}.{name}: expert {expert} is out of range of the layer's {len(widths)} "
                    f"experts; nearest valid value {max(0, min(expert, len(widths) - 1))}"
                )
            if not widths[expert]:
                raise ConfigError(
                    f"{path}.{name}: expert {expert} computes nothing and has no weights to train"
                )
