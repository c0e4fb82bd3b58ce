"""Sparse upcycling: a dense model whose FFNs are copied into experts (Komatsuzaki et al. 2022,
2212.05055), whole or in pieces (He et al. 2024, 2410.07524)."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from numpy.typing import NDArray

from moejax.config import ConfigError
from moejax.experts import MoeConfig, WidthPlan
from moejax.experts.spec import projections
from moejax.models import ModelConfig
from moejax.routing.routers import TopK
from moejax.surgery.layers import Tree, assemble, require_dense, take_layers

SCALES = ("router", "weights", "none")


@dataclasses.dataclass(frozen=True)
class Upcycling:
    """How FFNs become experts.

    Attributes:
      copies: of each FFN (t5x's num_experts; He et al.'s expansion rate).
      k: copies that each token uses.
      pieces: granularity G: every copy is cut into so many experts, and a token uses `k G` of
        `copies G` (1: whole copies).
      renormalise: divide the chosen probabilities by their sum. False keeps them raw.
      scale: where the factor goes that makes the first step's output the dense one (`factor`): into
        the router's combine weights, into the down projections, or nowhere.
      noise: standard deviation of Gaussian noise on every copy, relative to each matrix's own.
      router_std: of the router's first weights.
      first_dense, every: which layers (`ModelConfig.first_dense`, `ModelConfig.moe_every`); the
        published recipe converts every second one.
    """

    copies: int = 8
    k: int = 2
    pieces: int = 1
    renormalise: bool = True
    scale: str = "router"
    noise: float = 0.0
    router_std: float = 0.02
    first_dense: int = 0
    every: int = 1

    @property
    def factor(self) -> float:
        """What the output must be multiplied by to be the dense one.

        Renormalised weights of a token's `k G` experts sum to 1, but its k copies are complete, so
        each piece gets 1/G of its copy's share: G. Raw probabilities of a router that starts near
        uniform are 1/(copies G) each: copies G/k, exact where they are equal. Both are He et al.'s
        (`E G^2 / topk` and `G`; Megatron-LM).
        """
        return float(self.pieces) * (1.0 if self.renormalise else self.copies / self.k)


def upcycled_config(model: ModelConfig, how: Upcycling) -> ModelConfig:
    """The config of the upcycled model.

    Raises:
      ConfigError: the model has experts already, the FFN does not divide into pieces, or the
        numbers fit no router.
    """
    require_dense(model, "upcycle")
    if how.scale not in SCALES:
        raise ConfigError(f"scale={how.scale!r}: one of {', '.join(SCALES)}")
    if not 1 <= how.k <= how.copies:
        raise ConfigError(
            f"k={how.k}: of {how.copies} copies; nearest valid value "
            f"{max(1, min(how.k, how.copies))}"
        )
    require_divisor(model.ffn_width, how.pieces, "pieces")
    moe = MoeConfig(
        experts=how.copies * how.pieces,
        widths=WidthPlan(mean=model.ffn_width // how.pieces),
        router=TopK(
            k=how.k * how.pieces,
            renormalise=how.renormalise,
            scale=how.factor if how.scale == "router" else 1.0,
            init_std=how.router_std,
        ),
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


def upcycle(
    model: ModelConfig, params: Tree, how: Upcycling, seed: int = 0
) -> tuple[ModelConfig, Tree]:
    """The upcycled model and its `{params, router_state}`, NumPy arrays.

    Every expert is a copy of the FFN, or a piece of a copy; the router is drawn from scratch. With
    pieces, all those of a copy share one router column (a *virtual group*), so that a token which
    prefers a copy gets all of it. All else is as it was. Without noise, gates that sum to 1 and a
    bound that drops nothing, the model is the dense one at its first step.

    Args:
      model, params: a dense model.
      how: the recipe.
      seed: of router and noise.
    """
    config = upcycled_config(model, how)
    moe = config.moe
    assert moe is not None
    blocks = take_layers(model, params["segments"])
    states: list[Tree] = [{} for _ in blocks]
    for index, layer in enumerate(config.plan()):
        if layer is None:
            continue
        dense = blocks[index].pop("ffn")
        key = jax.random.fold_in(jax.random.key(seed), index)
        blocks[index]["ffn"] = {
            "experts": copied_experts(dense, model.activation, how, seed=(seed, index)),
            "router": _router(key, model.d_model, layer, how.pieces),
        }
    return config, assemble(config, params, blocks, states)


def copied_experts(
    ffn: Tree, activation: str, how: Upcycling, seed: tuple[int, ...] = (0,)
) -> dict[str, NDArray]:
    """The expert arrays `[copies G, F / G, D]` of an FFN: expert `c G + g` is piece g of copy c.

    Args:
      ffn: `gate_FD` (gated only), `up_FD` and `down_FD`.
    """
    random = np.random.default_rng(seed)
    made = {}
    for name in projections(activation):
        dense_FD = np.asarray(ffn[f"{name}_FD"])
        units = (how.pieces, len(dense_FD) // how.pieces, dense_FD.shape[1])
        copies = np.tile(dense_FD.reshape(units), (how.copies, 1, 1))
        wide = copies.astype(np.float32) if copies.dtype.itemsize < 4 else copies
        if how.noise:
            step = how.noise * float(np.std(dense_FD.astype(np.float64)))
            wide = wide + step * random.standard_normal(copies.shape, np.float32)
        if name == "down" and how.scale == "weights":
            wide = wide * wide.dtype.type(how.factor)
        made[f"{name}_NUD"] = wide.astype(copies.dtype)
    return made


def _router(key: jax.Array, d_model: int, moe: MoeConfig, pieces: int) -> dict[str, NDArray]:
    drawn = moe.router.init(key, d_model, moe.num_experts // pieces)
    return {name: np.repeat(np.asarray(w_DE), pieces, axis=-1) for name, w_DE in drawn.items()}


def require_divisor(width: int, parts: int, name: str) -> None:
    """Raises ConfigError, naming the nearest, unless an FFN of this width divides evenly."""
    if parts < 1 or width % parts:
        divisors = [d for d in range(1, width + 1) if width % d == 0]
        near = min(divisors, key=lambda d: abs(d - parts))
        raise ConfigError(
            f"{name}={parts}: does not divide the FFN's {width} hidden units; nearest valid value "
            f"{near}"
        )
