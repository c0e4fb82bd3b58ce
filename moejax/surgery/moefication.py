"""MoEfication: a dense FFN cut into small experts (Zhang et al. 2022, 2110.01786), the construction
behind Unraveling Babel (Liu et al. 2024, 2402.16367).

An FFN is a sum over its hidden units, so any division of the units into experts, all of them on and
all with weight 1, is the same function. What differs is how little of it is enough: how units are
grouped (`partition`), and who chooses (`oracle`, or a router fitted by `router_fit`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from moejax.config import ConfigError, nearest
from moejax.experts import MoeConfig, WidthPlan
from moejax.experts.spec import GATED, projections
from moejax.models import ModelConfig
from moejax.routing import LossesConfig, Router
from moejax.routing.losses import LoadBalance
from moejax.routing.routers import MoEfication, Oracle
from moejax.surgery import partition
from moejax.surgery.activations import (
    Batch,
    activity_by_expert,
    coactivation,
    walk,
)
from moejax.surgery.layers import Tree, assemble, require_dense, take_layers
from moejax.surgery.partition import Partition
from moejax.surgery.router_fit import Fit, centres, first_params, fit, measure, similarity_params
from moejax.surgery.upcycling import require_divisor

SPLITS = ("weights", "coactivation", "contiguous", "random")
ROUTERS = ("oracle", "similarity", "mlp")
ROWS = ("gate", "up", "both")

Tell = Callable[[str, int, int], None]
"""Told of (stage, done, total)."""


@dataclasses.dataclass(frozen=True)
class Moefying:
    """How FFNs are cut, and who chooses.

    Attributes:
      experts: N, of each FFN; divides its width.
      k: experts that each token uses; 0: a fifth (MoEfication: 20 of 96).
      split: what goes together: units of like weights (balanced k-means), units that are active
        together on the text, neighbours, or nothing (random).
      rows: the weights that are compared, of a gated FFN (`both`: gate and up rows side by side).
      router: `oracle`, `similarity` (a linear map of the experts' mean units), or `mlp` (fitted).
      straight_through: lets a later training of the model reach the router (`MoEfication`).
      epochs: of the fit.
      starts: of the clustering.
      first_dense, every: which layers, as `ModelConfig`'s.
    """

    experts: int = 48
    k: int = 0
    split: str = "weights"
    rows: str = "gate"
    router: str = "mlp"
    straight_through: bool = False
    epochs: int = 30
    starts: int = partition.STARTS
    first_dense: int = 0
    every: int = 1

    @property
    def active(self) -> int:
        """Experts that each token uses."""
        return self.k or max(1, round(self.experts / 5))

    @property
    def needs_text(self) -> bool:
        """Whether units are grouped, or a router fitted, by what a text does."""
        return self.split == "coactivation" or self.router != "oracle"

    def rule(self) -> Router:
        """The router of the converted layers."""
        if self.router == "oracle":
            return Oracle(k=self.active)
        hidden = self.experts if self.router == "mlp" else 0
        return MoEfication(k=self.active, hidden=hidden, straight_through=self.straight_through)


@dataclasses.dataclass(frozen=True)
class CutLayer:
    """What became of one layer: the partition, and how well its router chooses (None: oracle)."""

    layer: int
    partition: Partition
    fit: Fit | None


def moefied_config(model: ModelConfig, how: Moefying) -> ModelConfig:
    """The config of the model with its FFNs cut.

    Raises:
      ConfigError: the model has experts already, N does not divide the FFN, or a name is unknown.
    """
    require_dense(model, "moefy")
    for name, known in (("split", SPLITS), ("router", ROUTERS), ("rows", ROWS)):
        value = getattr(how, name)
        if value not in known:
            raise ConfigError(f"{name}={value!r}: one of {', '.join(known)}{nearest(value, known)}")
    require_divisor(model.ffn_width, how.experts, "experts")
    if how.active > how.experts:
        raise ConfigError(f"k={how.k}: of {how.experts} experts; nearest valid value {how.experts}")
    moe = MoeConfig(
        experts=how.experts,
        widths=WidthPlan(mean=model.ffn_width // how.experts),
        router=how.rule(),
        losses=LossesConfig(LoadBalance(0.0)),
        activation=model.activation,
    )
    return dataclasses.replace(
        model,
        moe=moe,
        first_dense=how.first_dense,
        moe_every=how.every,
        layers=(),
        moe_variants={},
    )


def all_on(model: ModelConfig) -> ModelConfig:
    """The cut model with every expert on: the dense one, up to the order of its sums."""
    assert model.moe is not None
    router = dataclasses.replace(model.moe.router, k=model.moe.experts)  # type: ignore[call-arg]
    return dataclasses.replace(model, moe=dataclasses.replace(model.moe, router=router))


def moefy(
    model: ModelConfig,
    params: Tree,
    how: Moefying,
    batches: Sequence[Batch] = (),
    seed: int = 0,
    tell: Tell = lambda stage, done, total: None,
) -> tuple[ModelConfig, Tree, list[CutLayer]]:
    """The cut model, its `{params, router_state}` (NumPy arrays), and what became of each layer.

    Layers are taken one after the other, all on what the *dense* model computes: a later layer is
    fitted to inputs that no earlier cut has touched.

    Args:
      model, params: a dense model.
      how: the recipe.
      batches: the text (`activations.walk`), where `how.needs_text`.
      seed: of clusters, random cuts and the fit.
      tell: told of the layers.

    Raises:
      ConfigError: as `moefied_config`; or a text is needed and there is none.
    """
    config = moefied_config(model, how)
    if how.needs_text and not batches:
        raise ConfigError(f"split={how.split}, router={how.router}: need a text, and there is none")
    blocks = take_layers(model, params["segments"])
    states: list[Tree] = [{} for _ in blocks]
    reads: dict[int, NDArray] = {}
    cut: list[CutLayer] = []
    walked = walk(model, params, batches) if how.needs_text else None
    for index, moe in enumerate(config.plan()):
        if walked is not None:
            reads = {index: next(walked).x_TD}
        if moe is not None:
            ffn = blocks[index].pop("ffn")
            layer, router = cut_layer(
                ffn, model.activation, how, moe.router, index, reads.get(index), seed
            )
            blocks[index]["ffn"] = {
                "experts": split_ffn(ffn, model.activation, layer.partition.expert_F, how.experts)
            } | ({"router": router} if router else {})
            cut.append(layer)
        tell("layers", index + 1, len(blocks))
    return config, assemble(config, params, blocks, states), cut


def cut_layer(
    ffn: Tree,
    activation: str,
    how: Moefying,
    rule: Router,
    layer: int,
    x_TD: NDArray | None,
    seed: int,
) -> tuple[CutLayer, dict[str, Any]]:
    """The partition of one FFN, and its router's parameters (none of the oracle)."""
    units = group_units(ffn, activation, how, x_TD, seed=(seed, layer))
    if not isinstance(rule, MoEfication):
        return CutLayer(layer, units, None), {}
    assert x_TD is not None
    centre_DE = centres(compared_rows(ffn, activation, "gate"), units.expert_F, how.experts)
    active_TE = activity_by_expert(ffn, activation, x_TD, units.expert_F, how.experts)
    if how.router == "similarity":
        params = similarity_params(centre_DE)
        return CutLayer(layer, units, measure(rule, params, x_TD, active_TE)), params
    key = jax.random.fold_in(jax.random.key(seed), layer)
    params, found = fit(
        rule, first_params(rule, centre_DE, key), x_TD, active_TE, epochs=how.epochs, seed=seed
    )
    return CutLayer(layer, units, found), params


def group_units(
    ffn: Tree, activation: str, how: Moefying, x_TD: NDArray | None, seed: tuple[int, ...]
) -> Partition:
    """The partition of an FFN's hidden units that `how.split` means."""
    width = len(ffn["up_FD"])
    if how.split == "contiguous":
        return partition.contiguous(width, how.experts)
    if how.split == "random":
        return partition.dealt(width, how.experts, seed)
    if how.split == "coactivation":
        assert x_TD is not None
        alike: NDArray[Any] = partition.cosines(coactivation(ffn, activation, x_TD))
    else:
        unit_FD = partition.unit_rows(compared_rows(ffn, activation, how.rows))
        alike = unit_FD @ unit_FD.T
    return partition.balanced_clusters(alike, how.experts, seed, starts=how.starts)


def compared_rows(ffn: Tree, activation: str, rows: str) -> NDArray[np.float32]:
    """The rows that stand for the hidden units: of the first matrix, or as `Moefying.rows` says."""
    names = ("gate", "up") if rows == "both" else (rows,)
    if activation not in GATED:
        names = ("up",)
    return np.concatenate(
        [partition.unit_rows(np.asarray(ffn[f"{name}_FD"])) for name in names], axis=1
    )


def split_ffn(ffn: Tree, activation: str, expert_F: NDArray, experts: int) -> dict[str, NDArray]:
    """The expert arrays `[N, F / N, D]` of an FFN whose unit `f` is of expert `expert_F[f]`."""
    order_F = partition.order_of(expert_F)
    made = {}
    for name in projections(activation):
        dense_FD = np.asarray(ffn[f"{name}_FD"])
        made[f"{name}_NUD"] = dense_FD[order_F].reshape(experts, -1, dense_FD.shape[1])
    return made
