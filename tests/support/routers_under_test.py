"""Every registered router, and the knob settings whose code differs from the defaults'."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from moejax.routing import ROUTERS as REGISTRY
from moejax.routing import RouterInputs
from moejax.routing.routers import (
    FixedMasks,
    LearnedMasks,
    MoEfication,
    MoEPlusPlus,
    SigmoidBias,
    TopK,
    TopP,
)

E = 8

VARIANTS = {
    "top_k_raw": TopK(k=3, renormalise=False, scale=2.5, jitter=0.1),
    "top_k_groups": TopK(k=3, groups=4, groups_kept=2),
    "top_p_hmoe": TopP(p=0.6, inclusive=True, renormalise=True),
    "top_p_k_max": TopP(p=0.7, k_min=2, k_max=3),
    "sigmoid_bias_groups": SigmoidBias(k=3, scale=2.5, groups=4, groups_kept=2),
    "moefication_tanh": MoEfication(k=3, hidden=12, straight_through=True),
    "learned_masks_two": LearnedMasks(masks=2, per_token=2, init_log_alpha=0.0, gain=30.0),
    "fixed_masks_two": FixedMasks(masks=3, per_token=2),
    "moe_plus_plus_code": MoEPlusPlus(renormalise=True, zero_experts=1, two_layer=True),
}


def routers():
    """The whole registry at its defaults, and the variants, by name."""
    return {name: REGISTRY.get(name)() for name in REGISTRY.names()} | VARIANTS


# Other tests register routers of their own, some of them wrong on purpose, and may be read first.
ROUTERS = {name: router for name, router in routers().items() if "_for_test_" not in name}


def make_inputs(num_tokens, **fields):
    """Inputs with everything a router may ask for; four sequences."""
    random = np.random.default_rng(9)
    given = {
        "token_id_T": random.integers(0, 100, num_tokens).astype(np.int32),
        "position_T": np.arange(num_tokens, dtype=np.int32),
        "sequence_T": (np.arange(num_tokens) * 4 // num_tokens).astype(np.int32),
        "carry_TE": random.normal(size=(num_tokens, E)).astype(np.float32),
        "activity_TE": random.gamma(2.0, size=(num_tokens, E)).astype(np.float32),
        "valid_T": np.ones(num_tokens, bool),
        "key": jax.random.key(7),
        "num_experts": E,
    }
    return RouterInputs(**(given | fields))


def make_router(router, d_model):
    """Parameters and a state that are not the initial ones, so that nothing is 0 by chance."""
    params = router.init(jax.random.key(3), d_model, E)
    state = router.init_state(E)
    random = np.random.default_rng(4)
    params = {
        name: np.asarray(leaf) + 0.4 * random.normal(size=leaf.shape).astype(np.float32)
        for name, leaf in params.items()
    }
    state = {
        name: np.asarray(leaf) + np.abs(0.1 * random.normal(size=leaf.shape)).astype(np.float32)
        for name, leaf in state.items()
    }
    return params, state


@functools.cache
def _compiled(name):
    return jax.jit(lambda *given: ROUTERS[name](*given)[0])


def route(name, x_TD, inputs):
    """The routing of a router by name."""
    return _compiled(name)(x_TD, inputs, *make_router(ROUTERS[name], x_TD.shape[-1]))


def stack(tree):
    """A leading layer axis of one, as `update_state` and `auxiliary` are given."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], tree)
