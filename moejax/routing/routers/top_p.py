"""Top-p (dynamic) routing: Huang, An et al. 2024, "Harder Tasks Need More Experts" (2403.07652).

The rule is that of the official inference code (`top_p_sampling_batched_all_sequence`): sort the
probabilities, take experts until their cumulative probability passes `p`, the crossing expert
included, and combine with the *raw* probabilities. HMoE (2408.10681, eq. 9-11), which says that
it follows the paper, crosses at `>=` and renormalises; both choices are knobs.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from moejax.config.knobs import ConfigError, knob
from moejax.routing.contract import ROUTERS, Card, State
from moejax.routing.linear import LinearRouter, Selection, renormalised


@ROUTERS.register("top_p")
@dataclasses.dataclass(frozen=True)
class TopP(LinearRouter):
    """Each token uses as many experts as it needs to gather probability `p`: at least one, and
    every expert at `p = 1`."""

    card = Card(
        proposed="Huang et al. 2024, arXiv 2403.07652; HMoE, Wang et al. 2024, arXiv 2408.10681",
        rule="the fewest best whose softmax probabilities sum past `p`",
        weights="probabilities, raw (Huang et al.) or renormalised (HMoE)",
        losses=("load_balance", "entropy", "parameter_penalty", "z_loss"),
    )
    p: float = knob(
        0.4,
        low=0.0,
        low_open=True,
        high=1.0,
        unit="probability",
        doc="Cumulative probability that a token's experts must reach "
        "(Huang et al. 0.4; HMoE 0.6).",
    )
    inclusive: bool = knob(
        False,
        doc="False: stop once the cumulative probability is > p (Huang et al., code). "
        "True: once it is >= p (HMoE eq. 9).",
    )
    renormalise: bool = knob(
        False,
        doc="False: combine with raw probabilities (Huang et al., code). "
        "True: divide by their sum over the experts in use (HMoE eq. 11).",
    )
    k_min: int = knob(
        1,
        low=1,
        unit="experts per token",
        doc="Fewest experts that a token uses, however sure its router is.",
    )
    k_max: int = knob(
        0,
        low=0,
        unit="experts per token",
        doc="Most experts that a token may use; the rest of its request is dropped and counted "
        "as `k_max`. 0 means no bound.",
    )

    def slots(self, num_experts: int) -> int:
        return self.k_max or num_experts

    def nominal_active(self, num_experts: int) -> float:
        """Experts that uniform scores request, which is where a fresh router starts: the smallest
        `n` with `n/E > p`, or with `n/E >= p` where `inclusive`; within `k_min` and the slots.

        The two differ by one where `p * E` is whole. Uneven scores gather `p` sooner, so no token
        requests more than this (unless `k_min` makes it), and training brings the number down.
        """
        share = round(self.p * num_experts, 6)  # 0.57 of 100 experts is 57, not 56.99999999999999
        wanted = math.ceil(share) if self.inclusive else math.floor(share) + 1
        return float(min(max(wanted, self.k_min), self.slots(num_experts)))

    def weight_sum(self) -> tuple[float, float]:
        return (1.0 if self.renormalise else 0.0), 1.0

    def check_experts(self, num_experts: int, path: str) -> None:
        for name in ("k_min", "k_max"):
            value = getattr(self, name)
            if value > num_experts:
                raise ConfigError(
                    f"{path}.{name}: {value} experts per token but there are {num_experts}; "
                    f"nearest valid value {num_experts}"
                )
        if self.k_max and self.k_min > self.k_max:
            raise ConfigError(
                f"{path}.k_min: {self.k_min} experts per token but k_max={self.k_max}; "
                f"nearest valid value {self.k_max}"
            )

    def select(self, scores_TE: jax.Array, state: State) -> Selection:
        return top_p(
            scores_TE,
            self.p,
            inclusive=self.inclusive,
            renormalise=self.renormalise,
            k_min=self.k_min,
            k_max=self.slots(scores_TE.shape[-1]),
        )


def top_p(
    probs_TE: jax.Array, p: float, *, inclusive: bool, renormalise: bool, k_max: int, k_min: int = 1
) -> Selection:
    """The smallest prefix of the sorted probabilities that crosses `p` and holds `k_min` experts,
    cut to `k_max`.

    Args:
      probs_TE: float32 `[T, E]`, rows sum to 1.

    Returns:
      `[T, k_max]` experts in descending order of probability (ties: lowest index first);
      `requested_T` is the length of the prefix before the cut. With `renormalise` the weights of
      the experts kept *after* the cut sum to 1.
    """
    num_experts = probs_TE.shape[-1]
    sorted_TE, order_TE = jax.lax.top_k(probs_TE, num_experts)
    # The threshold acts on which experts are used, never on a gradient.
    mass_TE = jnp.cumsum(jax.lax.stop_gradient(sorted_TE), axis=-1)
    crossed_TE = mass_TE >= p if inclusive else mass_TE > p
    # Where rounding keeps the whole mass below p, every expert is in use; at p = 1 it must not end
    # the prefix early either (a float32 sum may reach 1 before the last, tiny, probability).
    crossed_TE = crossed_TE & (p < 1.0)
    crossing_T = jnp.where(crossed_TE.any(-1), crossed_TE.argmax(-1), num_experts - 1)
    requested_T = jnp.maximum(crossing_T.astype(jnp.int32) + 1, k_min)
    filled_TK = jnp.arange(k_max) < requested_T[:, None]
    expert_TK = jnp.where(filled_TK, order_TE[:, :k_max], num_experts)
    weight_TK = jnp.where(filled_TK, sorted_TE[:, :k_max], 0.0)
    if renormalise:
        weight_TK = renormalised(weight_TK, filled_TK)
    return Selection(expert_TK, weight_TK, requested_T)
