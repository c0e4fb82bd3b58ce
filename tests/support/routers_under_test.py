"""Every router that must honour the contract: ours, and the sketches of the next issue."""

import jax
import jax.numpy as jnp
import numpy as np
from sketch_routers import ExpertChoice, GatingResidual, Hash, ReLU, SigmoidBias

from moejax.routing import RouterInputs
from moejax.routing.routers import TopK, TopP

E, D = 8, 12

ROUTERS = {
    "top_k": TopK(k=2),
    "top_k_raw": TopK(k=3, renormalise=False),
    "top_p": TopP(p=0.4, init_std=0.3),
    "top_p_hmoe": TopP(p=0.6, inclusive=True, renormalise=True, init_std=0.3),
    "top_p_k_max": TopP(p=0.7, k_max=2, init_std=0.1),
    "sigmoid_bias": SigmoidBias(k=2),
    "hash": Hash(),
    "expert_choice": ExpertChoice(),
    "remoe": ReLU(),
    "moe_plus_plus": GatingResidual(),
}


def make_inputs(num_tokens, **fields):
    """Inputs with everything a router may ask for; four sequences."""
    random = np.random.default_rng(9)
    token = jnp.asarray(random.integers(0, 100, num_tokens), jnp.int32)
    carry = jnp.asarray(random.normal(size=(num_tokens, E)), jnp.float32)
    given = {
        "token_id_T": token,
        "position_T": jnp.asarray(np.arange(num_tokens), jnp.int32),
        "sequence_T": jnp.asarray(np.arange(num_tokens) * 4 // num_tokens, jnp.int32),
        "carry_TE": carry,
        "key": jax.random.key(7),
        "num_experts": E,
    }
    return RouterInputs.of(num_tokens, **(given | fields))


def make_router(name):
    """The rule, parameters and a state that is not the initial one."""
    router = ROUTERS[name]
    params = router.init(jax.random.key(3), D, E)
    state = router.init_state(E)
    if "bias_E" in state:
        state = {"bias_E": 0.3 * jax.random.normal(jax.random.key(4), (E,))}
    return router, params, state


def route(name, x_TD, inputs):
    router, params, state = make_router(name)
    return jax.jit(lambda *given: router(*given)[0])(x_TD, inputs, params, state)
