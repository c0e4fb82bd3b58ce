"""Routers that break one promise each, with the check of the battery that must turn red for it;
and a sound one that is as unlike the others as the contract allows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from moejax.config import knob
from moejax.routing import Router
from moejax.routing.linear import linear_logits
from moejax.routing.routers import ExpertChoice, MoEPlusPlus, ReMoE, SigmoidBias, TopK, TopP, top_k


@dataclasses.dataclass(frozen=True)
class ScoresAlone(Router):
    """Sound: no LinearRouter, two layers with parameters of other names, scores without logits."""

    has_logits = False
    share: float = knob(0.5, low=0, high=1)

    def slots(self, num_experts):
        return num_experts

    def init(self, key, d_model, num_experts):
        return {
            "in_DH": jax.random.normal(key, (d_model, 5)),
            "out_HE": jax.random.normal(key, (5, num_experts)),
        }

    def num_parameters(self, d_model, num_experts):
        return (d_model + num_experts) * 5

    def score(self, logits_TE):
        return jax.nn.softmax(logits_TE, axis=-1)

    def __call__(self, x_TD, inputs, params, state):
        hidden_TH = jnp.tanh(linear_logits(x_TD, params["in_DH"]))
        scores_TE = self.score(linear_logits(hidden_TH, params["out_HE"]))
        num_experts = scores_TE.shape[-1]
        weight_TK, expert_TK = jax.lax.top_k(scores_TE, num_experts)
        expert_TK = jnp.where(weight_TK >= self.share * weight_TK[:, :1], expert_TK, num_experts)
        made = {"scores_TE": scores_TE, "num_experts": num_experts}
        return self.routing(inputs, expert_TK, weight_TK, **made), inputs.carry_TE


# ---- books, state


class WeighsTwice(TopK):
    def select(self, scores_TE, state):
        chosen = super().select(scores_TE, state)
        return chosen._replace(weight_TK=2 * chosen.weight_TK)


class HidesARequest(TopK):
    def select(self, scores_TE, state):
        return super().select(scores_TE, state)._replace(requested_T=jnp.ones(len(scores_TE), int))


class MixesLayers(SigmoidBias):
    def update_state(self, state, stats):
        return {"bias_E": super().update_state(state, stats)["bias_E"].mean(0)}


# ---- declared properties


class SeesTheFuture(TopK):
    def __call__(self, x_TD, inputs, params, state):
        return super().__call__(x_TD - x_TD.mean(0), inputs, params, state)


class DeclaresTooLittle(TopK):
    causal = False


class CountsTokens(TopK):
    def logits(self, x_TD, inputs, params):
        odd_T1 = jnp.arange(len(x_TD))[:, None] % 2
        return super().logits(x_TD, inputs, params) + odd_T1 * jnp.arange(inputs.num_experts)


class FavoursTheLast(TopK):
    def logits(self, x_TD, inputs, params):
        return super().logits(x_TD, inputs, params) + jnp.arange(inputs.num_experts)


# ---- padding


class CountsPadding(ExpertChoice):
    def __call__(self, x_TD, inputs, params, state):
        everyone = dataclasses.replace(inputs, valid_T=jnp.ones_like(inputs.valid_T))
        routing, carry_TE = super().__call__(x_TD, everyone, params, state)
        experts = routing.expert_TK, routing.weight_TK
        kept = self.routing(inputs, *experts, num_experts=routing.num_experts)
        return dataclasses.replace(
            kept, scores_TE=routing.scores_TE, logits_TE=routing.logits_TE
        ), carry_TE


class AveragesNothing(SigmoidBias):
    def update_state(self, state, stats):
        load_LE = stats.count_E / stats.tokens[:, None]
        return {"bias_E": state["bias_E"] - self.rate * load_LE}


# ---- numbers


class LastExpertFirst:
    def select(self, scores_TE, state):
        chosen = super().select(scores_TE[:, ::-1], state)
        num_experts = scores_TE.shape[-1]
        mirrored_TK = num_experts - 1 - chosen.expert_TK
        return chosen._replace(expert_TK=jnp.where(mirrored_TK >= 0, mirrored_TK, num_experts))


class PrefersTheLast(LastExpertFirst, TopK):
    pass


class PrefersTheLastOfAll(LastExpertFirst, ReMoE):
    """Uses the right experts, in the wrong order."""


class PrefersLastTokens(ExpertChoice):
    def __call__(self, x_TD, inputs, params, state):
        def turned(tree):
            return jax.tree.map(lambda leaf: leaf[::-1] if leaf.ndim else leaf, tree)

        return turned(super().__call__(x_TD[::-1], turned(inputs), params, state))


class NaiveSoftmax:
    def score(self, logits_TE):
        return jnp.exp(logits_TE) / jnp.exp(logits_TE).sum(-1, keepdims=True)


class Overflows(NaiveSoftmax, MoEPlusPlus):
    """By its own two layers no tokens make logits large enough to show it."""


class OverflowsUnseen(NaiveSoftmax, ScoresAlone):
    """As above, and its logits can be reached by its parameters alone."""


class DividesByNothing(SigmoidBias):
    def select(self, scores_TE, state):
        chosen = top_k(scores_TE, self.k, renormalise=False)
        total_T1 = chosen.weight_TK.sum(-1, keepdims=True)
        return chosen._replace(weight_TK=chosen.weight_TK / total_T1)


class GoesAround(TopK):
    """Its `logits` is not what it routes by."""

    def __call__(self, x_TD, inputs, params, state):
        return TopK()(x_TD, inputs, params, state)


class RoundsLogits(TopK):
    def logits(self, x_TD, inputs, params):
        return (x_TD @ params["w_DE"].astype(x_TD.dtype)).astype(jnp.float32)


class Unsteady(TopK):
    def logits(self, x_TD, inputs, params):
        drawn_TE = jax.random.normal(jax.random.key(0) if inputs.train else jax.random.key(1))
        return linear_logits(x_TD, params["w_DE"]) + drawn_TE * jnp.arange(inputs.num_experts)


class DrawsWhenTraced(TopK):
    """Noise from outside: another draw whenever its program is traced."""

    random = np.random.default_rng(0)

    def logits(self, x_TD, inputs, params):
        drawn_E = self.random.normal(size=inputs.num_experts).astype(np.float32)
        return super().logits(x_TD, inputs, params) + drawn_E


class KnowsItIsTraced(TopK):
    def logits(self, x_TD, inputs, params):
        logits_TE = super().logits(x_TD, inputs, params)
        return logits_TE if isinstance(x_TD, jax.core.Tracer) else -logits_TE


# ---- the ends of the knobs


class LeavesOneOut(TopK):
    def select(self, scores_TE, state):
        chosen = super().select(scores_TE, state)
        last = scores_TE.shape[-1] - 1
        keep_K = jnp.arange(self.k) < last
        return chosen._replace(expert_TK=jnp.where(keep_K, chosen.expert_TK, last + 1))


class TakesAnyK(TopK):
    def check_experts(self, num_experts, path):
        pass


class Standardises(TopK):
    def logits(self, x_TD, inputs, params):
        logits_TE = super().logits(x_TD, inputs, params)
        return logits_TE / logits_TE.std(-1, keepdims=True)


class NeverAll(TopP):
    def select(self, scores_TE, state):
        return TopP.select(dataclasses.replace(self, p=min(self.p, 0.9)), scores_TE, state)


class AlwaysTwo(TopP):
    def select(self, scores_TE, state):
        return TopP.select(dataclasses.replace(self, k_min=2), scores_TE, state)


# ---- balance


class Rewarded(MoEPlusPlus):
    """The balance loss of its scores drives it further apart; two layers, no `w_DE` to push."""

    def score(self, logits_TE):
        return jax.nn.softmax(-logits_TE, axis=-1)

    def select(self, scores_TE, state):
        return super().select(jax.nn.softmax(-jnp.log(scores_TE), axis=-1), state)


class TakesTheWorst(ScoresAlone):
    """It avoids what its scores favour, so that nothing drives it to a load CV of 1."""

    def __call__(self, x_TD, inputs, params, state):
        routing, carry_TE = super().__call__(x_TD, inputs, params, state)
        _, expert_TK = jax.lax.top_k(-routing.scores_TE, routing.num_experts)
        slots = jnp.arange(routing.num_experts) < 3
        return dataclasses.replace(
            routing, expert_TK=jnp.where(slots, expert_TK, routing.num_experts)
        ), carry_TE


class TakesTurns(TopK):
    """Scores that no parameter moves, and experts in turn: even, but not by its rule."""

    def logits(self, x_TD, inputs, params):
        return 0 * super().logits(x_TD, inputs, params)

    def select(self, scores_TE, state):
        num_tokens, num_experts = scores_TE.shape
        turn_TK = jnp.arange(num_tokens)[:, None] + jnp.arange(self.k)
        chosen = super().select(scores_TE, state)
        return chosen._replace(expert_TK=turn_TK % num_experts)


FAULTY = [
    (WeighsTwice(), "shapes_types_and_books", "weights sum to 2.0"),
    (HidesARequest(), "shapes_types_and_books", "more experts than asked for"),
    (MixesLayers(), "state_keeps_its_shape", r"update_state made \(8,\) of \(2, 8\)"),
    (SeesTheFuture(), "causality_is_as_declared", "causal=True is not so"),
    (DeclaresTooLittle(), "causality_is_as_declared", "causal=False is not so"),
    (CountsTokens(), "token_equivariance_is_as_declared", "token_equivariant=True is not so"),
    (FavoursTheLast(), "expert_equivariance_is_as_declared", "expert_equivariant=True is not so"),
    (CountsPadding(), "padded_equals_compacted_in_values_and_gradients", "not equal"),
    (AveragesNothing(), "a_batch_of_only_padding", "'bias_E'.* is not finite"),
    (PrefersTheLast(), "ties_go_to_the_lowest_index", "not equal"),
    (PrefersTheLastOfAll(), "ties_go_to_the_lowest_index", "not equal"),
    (PrefersLastTokens(), "ties_go_to_the_lowest_index", "a later one was preferred"),
    (FavoursTheLast(), "ties_go_to_the_lowest_index", "unequal scores"),
    (Overflows(two_layer=True), "extreme_logits", "a weight that is none"),
    (OverflowsUnseen(), "extreme_logits", "d_params.* is not finite"),
    (DividesByNothing(), "extreme_logits", "a weight that is none"),
    (GoesAround(), "extreme_logits", "does not use its own `logits`"),
    (RoundsLogits(), "bfloat16_activations_choose_what_float32_math_says", "Not equal"),
    (Unsteady(), "noise_needs_a_key_and_training", "not equal"),
    (DrawsWhenTraced(), "rematerialisation_changes_nothing", "not equal"),
    (KnowsItIsTraced(), "jit_equals_eager", "not equal"),
    (LeavesOneOut(), "k_equal_to_the_number_of_experts", "not equal"),
    (TakesAnyK(), "k_equal_to_the_number_of_experts", "DID NOT RAISE"),
    (Standardises(), "one_expert_for_all", "no finite weight"),
    (AlwaysTwo(), "the_ends_of_p", "asks for other than 1"),
    (NeverAll(), "the_ends_of_p", "fewer than all experts"),
    (Rewarded(two_layer=True), "the_balance_loss_lowers_the_load_cv", "load CV went from"),
    (TakesTheWorst(), "the_balance_loss_lowers_the_load_cv", "driven to a load CV of .* only"),
    (TakesTurns(), "the_balance_loss_lowers_the_load_cv", "nothing drives it"),
]
"""Router, check, symptom."""
