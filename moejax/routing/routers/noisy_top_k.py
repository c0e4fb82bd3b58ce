"""Noisy top-k gating (Shazeer et al. 2017, 1701.06538, eq. 3-5)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from moejax.routing import noise
from moejax.routing.contract import ROUTERS, Card, Params, RouterInputs
from moejax.routing.linear import linear_logits
from moejax.routing.routers.top_k import TopK


@ROUTERS.register("noisy_top_k")
@dataclasses.dataclass(frozen=True)
class NoisyTopK(TopK):
    """Top-k of `x @ w + N(0, 1) * softplus(x @ w_noise)`; the noise acts while training only.

    The amount of noise is learned for each expert; `w_noise` starts at 0 (as in the paper), which
    is a standard deviation of log 2. Choice, weights and losses all see the noisy logits.
    """

    card = Card(
        proposed="Shazeer et al. 2017, arXiv 1701.06538",
        rule="the `k` best after adding learned Gaussian noise to the logits (training only); "
        "optionally from the best groups only",
        weights="probabilities of the noisy logits, renormalised or raw, times `scale`",
        losses=("load_balance", "z_loss"),
    )

    def init(self, key: jax.Array, d_model: int, num_experts: int) -> Params:
        """`w_DE` as in every linear router, and `w_noise_DE` of zeros."""
        return super().init(key, d_model, num_experts) | {
            "w_noise_DE": jnp.zeros((d_model, num_experts), jnp.float32)
        }

    def num_parameters(self, d_model: int, num_experts: int) -> int:
        return 2 * d_model * num_experts

    def logits(self, x_TD: jax.Array, inputs: RouterInputs, params: Params) -> jax.Array:
        logits_TE = super().logits(x_TD, inputs, params)
        if not inputs.noisy:
            return logits_TE
        spread_TE = jax.nn.softplus(linear_logits(x_TD, params["w_noise_DE"]))
        return logits_TE + spread_TE * noise.normal(inputs, logits_TE.shape[-1], noise.LOGITS)
