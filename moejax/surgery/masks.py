"""Learned masks: a dense FFN under masks, what the masks say of it, and what is left of it.

The road of "Masks Can be Learned as an Alternative to Experts" (methods F): `masked` cuts every
dense FFN into groups of neurons and puts `learned_masks` in front of them, all open, which is the
dense model; the ordinary trainer closes gates; `classify` tells shared, token-specific and inactive
experts apart; `harden` makes of each layer a shared expert and experts of different widths that
hold and compute just what the masks have left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from moejax.config import ConfigError, check
from moejax.experts.config import MoeConfig
from moejax.experts.spec import projections
from moejax.models.config import ModelConfig
from moejax.routing import LossesConfig
from moejax.routing.losses import LoadBalance
from moejax.routing.routers import FixedMasks, LearnedMasks
from moejax.surgery.blocks import (
    LayerOf,
    expert_rows,
    plan_widths,
    put_together,
    take_apart,
)
from moejax.surgery.layers import Tree
from moejax.surgery.pruning import no_choice

NO_LOSSES = LossesConfig(LoadBalance(0.0))
Bools = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Masking:
    """How masks are put on a model and trained.

    Attributes:
      masks, per_token, target, gain, rate: as in `LearnedMasks`.
      groups: experts that each dense FFN is cut into.
      warmup: until the target is reached, a duration of the training.
      steps: length of the training, steps or tokens.
      lr: its peak learning rate.
    """

    masks: int = 4
    per_token: int = 1
    groups: int = 32
    target: float = 0.5
    warmup: str = "50%"
    gain: float = 1000.0
    rate: float = 1.0
    steps: str = "2e6 tokens"
    lr: float = 1e-4

    def rule(self, warmup: int) -> LearnedMasks:
        """The router, with its warm-up in steps; raises ConfigError if it is none."""
        router = LearnedMasks(
            masks=self.masks,
            per_token=self.per_token,
            target=self.target,
            warmup=warmup,
            rate=self.rate,
            gain=self.gain,
        )
        check(router, "--masks")
        return router


@dataclasses.dataclass(frozen=True)
class Classes:
    """What the masks of a layer say of its experts, by number.

    Attributes:
      shared: in every mask.
      specific: in some masks, so used by some tokens.
      inactive: in none.
    """

    shared: tuple[int, ...]
    specific: tuple[int, ...]
    inactive: tuple[int, ...]


def classify(member_ME: Bools) -> Classes:
    """The classes of the experts of a layer, from its masks."""
    member_ME = np.asarray(member_ME, bool)
    masks, count_E = len(member_ME), member_ME.sum(0)
    shared, specific, inactive = (
        tuple(np.flatnonzero(chosen_E).tolist())
        for chosen_E in (count_E == masks, (count_E > 0) & (count_E < masks), count_E == 0)
    )
    return Classes(shared, specific, inactive)


def masked(
    model: ModelConfig,
    tree: Tree,
    router: LearnedMasks,
    groups: int = 32,
    seed: int = 0,
) -> tuple[ModelConfig, Tree]:
    """The model with masks over the experts of every FFN; at first it computes what it did.

    A dense FFN is cut into `groups` experts of neighbouring neurons. An MoE layer keeps its experts
    and loses its router: that is the same model only if its experts are the pieces of a dense FFN
    (`tools.convert moefy`), all of which with weight 1 are that FFN.

    Raises:
      ConfigError: `groups` does not divide the width of a dense FFN; a layer has experts that
        compute nothing, or a capacity, which might drop what the dense model computes.
    """
    key = jax.random.key(seed)
    layers = [
        _masked(model, layer, number, router, groups, jax.random.fold_in(key, number))
        for number, layer in enumerate(take_apart(model, tree))
    ]
    return put_together(model, tree, layers, "masked")


def _masked(
    model: ModelConfig,
    layer: LayerOf,
    number: int,
    router: LearnedMasks,
    groups: int,
    key: jax.Array,
) -> LayerOf:
    ffn = dict(layer.params["ffn"])
    if layer.moe is None:
        if model.ffn_width % groups:
            near = max(n for n in range(1, groups + 1) if model.ffn_width % n == 0)
            raise ConfigError(
                f"--groups={groups}: does not divide the {model.ffn_width} neurons of layer "
                f"{number}; nearest valid value {near}"
            )
        width = model.ffn_width // groups
        moe = MoeConfig(groups, plan_widths([width]), activation=model.activation)
        ffn = {
            "experts": {
                f"{name}_NUD": ffn[f"{name}_FD"].reshape(groups, width, -1)
                for name in projections(model.activation)
            }
        }
    else:
        moe = layer.moe
        if moe.zero_compute.total or moe.capacity.factor or moe.capacity.eval_factor:
            raise ConfigError(
                f"layer {number}: has experts that compute nothing, or a capacity; masks are for "
                "the pieces of a dense FFN: nearest valid a run that tools.convert moefy has made"
            )
    d_model = next(iter(ffn["experts"].values())).shape[-1]
    ffn["router"] = _numpy(router.init(key, d_model, moe.experts))
    made = dataclasses.replace(
        moe,
        router=router,
        losses=NO_LOSSES,
        # All experts are on at first; room for them all saves passes over the batch.
        rows_per_token=float(moe.experts),
    )
    return layer.with_ffn(made, ffn, _numpy(router.init_state(moe.experts)))


def masks_of(model: ModelConfig, tree: Tree) -> dict[int, Bools]:
    """bool `[M, E]` by number of each layer with learned masks: the masks without noise.

    Raises:
      ConfigError: no layer has any.
    """
    found = {
        number: _decided(layer)
        for number, layer in enumerate(take_apart(model, tree))
        if layer.moe is not None and isinstance(layer.moe.router, LearnedMasks)
    }
    if not found:
        raise ConfigError(
            "no layer has learned masks; nearest valid a run of tools.convert mask, trained"
        )
    return found


def _decided(layer: LayerOf) -> Bools:
    assert layer.moe is not None and isinstance(layer.moe.router, LearnedMasks)
    params = jax.tree.map(jnp.asarray, layer.params["ffn"]["router"])
    return np.asarray(layer.moe.router.decided(params))


@dataclasses.dataclass(frozen=True)
class Hardened:
    """What became of a layer.

    Attributes:
      layer: its number in the model.
      classes: of the experts that it had.
      always: hidden units that every token uses.
      widths: of the routed experts that it has now.
      member_ME: bool, which of these each mask has.
    """

    layer: int
    classes: Classes
    always: int
    widths: tuple[int, ...]
    member_ME: Bools

    @property
    def active_width(self) -> float:
        """Hidden units of a token, mean over masks."""
        return self.always + float((self.member_ME @ np.asarray(self.widths)).mean())


def harden(model: ModelConfig, tree: Tree) -> tuple[ModelConfig, Tree, list[Hardened]]:
    """The masked model at its true cost; its deterministic forward, with what is off gone.

    Shared experts become the layer's shared expert, inactive ones go, and token-specific ones that
    are in the same masks become one expert of their joint width. A layer without token-specific
    experts has one expert that every token uses.

    Raises:
      ConfigError: no layer has learned masks.
    """
    masks = masks_of(model, tree)
    layers, report = take_apart(model, tree), []
    for number, member_ME in masks.items():
        layers[number], made = _hardened(layers[number], number, member_ME)
        report.append(made)
    config, made_tree = put_together(model, tree, layers, "masks")
    return config, made_tree, report


def _hardened(layer: LayerOf, number: int, member_ME: Bools) -> tuple[LayerOf, Hardened]:
    moe = layer.moe
    assert moe is not None and isinstance(moe.router, LearnedMasks)
    classes = classify(member_ME)
    # A gated shared expert is not there for every token to the same degree: leave it alone.
    merge = not moe.shared_gate and bool(classes.specific)
    by_column: dict[bytes, list[int]] = {}
    for expert in classes.specific if merge else (*classes.shared, *classes.specific):
        by_column.setdefault(member_ME[:, expert].tobytes(), []).append(expert)
    routed = list(by_column.values())
    widths = [sum(moe.spec.widths[expert] for expert in own) for own in routed]
    ffn = dict(layer.params["ffn"])
    weights = ffn["experts"]
    always = moe.shared_width
    if merge and classes.shared:
        always += sum(moe.spec.widths[expert] for expert in classes.shared)
        ffn["shared"] = _joined(ffn.get("shared"), _flat(moe, weights, classes.shared))
    plan = plan_widths(widths)
    order = [expert for own in routed for expert in own]
    ffn["experts"] = expert_rows(moe, weights, order, plan.unit_width)
    new_ME = np.stack([member_ME[:, own[0]] for own in routed], axis=1)
    if classes.specific:
        router = _fixed(moe.router, new_ME, np.asarray(widths))
        ffn["router"] = {"choose_DM": ffn["router"]["choose_DM"]}
        state: Tree = {"member_ME": new_ME.astype(np.float32)}
    else:
        router, new_ME = FixedMasks(masks=1), new_ME[:1]
        ffn["router"], state = no_choice(ffn["router"]["choose_DM"].shape[0], 1)
    made = dataclasses.replace(
        moe,
        experts=len(routed),
        widths=plan,
        router=router,
        shared_width=always,
        rows_per_token=0.0,
    )
    report = Hardened(number, classes, always, tuple(widths), new_ME)
    return layer.with_ffn(made, ffn, state), report


def _fixed(learned: LearnedMasks, member_ME: Bools, width_E: NDArray[np.int64]) -> FixedMasks:
    """The router of the masks that are decided, with the bounds that they have."""
    counts = np.sort(member_ME.sum(-1))[::-1]
    most = min(int(counts[: learned.per_token].sum()), len(width_E))
    # In experts of mean width, so that plans count the hidden units that a token really uses.
    active = float((member_ME @ width_E).mean() / width_E.mean())
    return FixedMasks(
        masks=learned.masks,
        per_token=learned.per_token,
        init_std=learned.init_std,
        most=max(most, 1),
        active=active,
    )


def _flat(moe: MoeConfig, weights: Tree, experts: Sequence[int]) -> Tree:
    """The hidden units of some experts as a dense FFN: `gate_FD`, `up_FD`, `down_FD`."""
    rows = expert_rows(moe, weights, experts, 1)
    return {name.removesuffix("_NUD") + "_FD": value[:, 0] for name, value in rows.items()}


def _joined(shared: Tree | None, more: Tree) -> Tree:
    if shared is None:
        return more
    return {name: np.concatenate([np.asarray(shared[name]), more[name]]) for name in more}


def _numpy(tree: Tree) -> Tree:
    made: Tree = jax.tree.map(np.asarray, tree)
    return made
