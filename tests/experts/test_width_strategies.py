"""Every width strategy behind both rules of HMoE, as a whole `MoELayer`: `tiles` equals `loop`.

In float64, to 1e-10, gradients of the router included: a router is float32 whatever the model is,
but both back ends hand it the same gradient of its weights, and what it rounds is rounded alike.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ffn_battery import agree
from flax import nnx

from moejax.config.widths import STRATEGIES, WidthPlan
from moejax.experts import MoeConfig, MoELayer
from moejax.routing.routers import TopK, TopP

T, D, E, TILE = 21, 6, 3, 4  # T is a multiple of nothing, and of no tile

PLANS = {
    "uniform": (WidthPlan(mean=4), (4, 4, 4)),
    "arithmetic": (WidthPlan("arithmetic", mean=8, unit=2), (4, 8, 12)),
    "geometric": (WidthPlan("geometric", mean=8, unit=1), (1, 2, 21)),
    "hybrid": (WidthPlan("hybrid", mean=12, unit=4), (4, 16, 16)),
    "explicit": (WidthPlan("explicit", explicit=(4, 0, 8)), (4, 0, 8)),
}
"""Plans, and the widths that they must give; few, for each width is compiled for itself."""

RULES = {
    "top_k": TopK(k=2, renormalise=True, init_std=0.5),
    "top_p": TopP(p=0.6, inclusive=True, renormalise=True, init_std=0.5),
}
"""HMoE, eq. 8 and 9-11."""


def run(plan, rule, backend, x_TD, dy_TD):
    """`(y, routing, ledger)` of a layer, and the gradients of `sum(y dy)` by parameters and x."""
    config = MoeConfig(
        # Two matrices are compiled sooner than three; `ffn_battery` has all activations.
        E, plan, RULES[rule], activation="gelu", backend=backend, tile=TILE
    )  # fmt: skip
    layer = MoELayer(D, config, rngs=nnx.Rngs(0), param_dtype=x_TD.dtype)
    graph, params, rest = nnx.split(layer, nnx.Param, ...)

    def loss(params, x_TD):
        y_TD, routing, ledger = nnx.merge(graph, params, rest)(x_TD)
        return (y_TD * dy_TD).sum(), (y_TD, routing, ledger)

    slopes, out = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, x_TD)
    return out, nnx.to_pure_dict(slopes[0]), slopes[1]


def test_every_strategy_is_here():
    assert PLANS.keys() == {*STRATEGIES, "explicit"}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("strategy", PLANS)
def test_a_layer_equals_the_oracle(strategy, rule):
    plan, widths = PLANS[strategy]
    assert plan.widths(E) == widths
    with jax.enable_x64(True):
        x_TD, dy_TD = jax.random.normal(jax.random.key(1), (2, T, D), jnp.float64)
        (y_TD, routing, ledger), slopes, dx_TD = run(plan, rule, "tiles", x_TD, dy_TD)
        (want_TD, *_), wanted, want_dx_TD = run(plan, rule, "loop", x_TD, dy_TD)
    agree("y", y_TD, want_TD, 1e-10)
    agree("dx", dx_TD, want_dx_TD, 1e-10)
    for name in ("up_NUD", "down_NUD"):
        agree(f"d{name}", slopes["experts"][name], wanted["experts"][name], 1e-10)
    agree("drouter", slopes["router"]["w_DE"], wanted["router"]["w_DE"], 1e-10)
    # Something was compared: every expert is in use, and the rules are not one.
    filled = np.asarray(routing.filled_TK)
    assert bool(ledger.balanced) and int(ledger.kept) == filled.sum()
    assert (np.asarray(routing.count_E) > 0).all() and np.abs(wanted["router"]["w_DE"]).max() > 0
    assert set(filled.sum(-1)) == ({2} if rule == "top_k" else {1, 2})
