"""Expert choice: experts choose tokens (Zhou et al. 2022, 2202.09368; flaxformer, methods H.2)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from moejax.config.knobs import knob
from moejax.routing.contract import ROUTERS, Card, Params, RouterInputs, Routing, State
from moejax.routing.linear import LinearRouter


@ROUTERS.register("expert_choice")
@dataclasses.dataclass(frozen=True)
class ExpertChoice(LinearRouter):
    """Each expert takes its `round(factor * T / E)` most probable tokens; a token has 0..E experts.

    Which tokens an expert takes depends on all tokens of the batch, later ones too: a decoder
    trained with it cannot generate as it was trained (`model.allow_noncausal`).
    """

    card = Card(
        proposed="Zhou et al. 2022, arXiv 2202.09368",
        rule="each expert takes its `factor * T/E` most probable tokens",
        weights="raw softmax probabilities",
        losses=("z_loss",),
    )
    causal = False
    factor: float = knob(
        1.0,
        low=0.0,
        low_open=True,
        unit="x balanced load",
        doc="Tokens of an expert, and so experts per token on average (flaxformer 1; sparse "
        "upcycling 2).",
    )

    def slots(self, num_experts: int) -> int:
        return num_experts

    def capacity(self, num_tokens: int, num_experts: int) -> int:
        """Tokens that each expert takes when `num_tokens` are real: at least 1, at most all."""
        return min(max(1, round(self.factor * num_tokens / num_experts)), num_tokens)

    def max_rows(self, num_tokens: int, num_experts: int) -> int:
        return num_experts * self.capacity(num_tokens, num_experts)

    def nominal_active(self, num_experts: int) -> float:
        return min(self.factor, float(num_experts))

    def weight_sum(self) -> tuple[float, float]:
        return 0.0, 1.0

    def __call__(
        self, x_TD: jax.Array, inputs: RouterInputs, params: Params, state: State
    ) -> tuple[Routing, jax.Array | None]:
        logits_TE = self.logits(x_TD, inputs, params)
        scores_TE = self.score(logits_TE)
        num_tokens, num_experts = scores_TE.shape
        # Shapes follow the padded batch, choices the real tokens: rank c of an expert is open once
        # there are enough of them that c + 1 are its share.
        share_N = [self.capacity(n, num_experts) for n in range(num_tokens + 1)]
        needed_C = np.searchsorted(share_N, np.arange(1, share_N[-1] + 1)).astype(np.int32)
        open_C = inputs.valid_T.sum(dtype=jnp.int32) >= needed_C
        chosen_TE = choose_tokens(scores_TE, inputs.valid_T, open_C)
        # In order of score, as in every router: a bound serves first choices first.
        weight_TK, expert_TK = jax.lax.top_k(jnp.where(chosen_TE, scores_TE, -1.0), num_experts)
        routing = self.routing(
            inputs,
            jnp.where(weight_TK >= 0, expert_TK, num_experts),
            weight_TK,
            scores_TE=scores_TE,
            logits_TE=logits_TE,
            num_experts=num_experts,
        )
        return routing, inputs.carry_TE


def choose_tokens(scores_TE: jax.Array, valid_T: jax.Array, open_C: jax.Array) -> jax.Array:
    """bool `[T, E]`: the tokens that each expert takes; ties go to the earliest token.

    Args:
      scores_TE: float32 `[T, E]`.
      valid_T: bool `[T]`; padding is never taken.
      open_C: bool `[C]`: which of an expert's C best tokens it may take (a prefix).
    """
    ranked_ET = jnp.where(valid_T[:, None], jax.lax.stop_gradient(scores_TE), -jnp.inf).T
    _, token_EC = jax.lax.top_k(ranked_ET, open_C.shape[0])
    expert_E1 = jnp.arange(scores_TE.shape[1])[:, None]
    taken_TE = jnp.zeros(scores_TE.shape, bool).at[token_EC, expert_E1].set(open_C)
    return taken_TE & valid_T[:, None]
