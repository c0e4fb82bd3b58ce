"""Models of several kinds of layer train."""

import itertools

import jax
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from model_samples import EQUAL, UNEQUAL, make, packed, random_params

from moejax.experts import MoeConfig, WidthPlan

EIGHT = MoeConfig(8, WidthPlan(mean=8), EQUAL.router, tile=8)


def test_dense_then_eight_equal_then_six_unequal_then_eight_equal_experts_train():
    model = make(
        EIGHT,
        moe_variants={"small": UNEQUAL},
        layers=("dense", "moe", "small", "moe"),
        num_layers=4,
    )
    assert [group.layers for group in model.groups] == [(1, 3), (2,)]
    assert [len(group.widths) for group in model.groups] == [8, 6]
    params, state = random_params(model, scale=0.2)
    batch = packed([(8, 8), (16,), (12,)], 16)
    optimizer = optax.adam(3e-3)
    params, tree_of = ravel_pytree(params)  # one vector: less to compile than forty leaves

    @jax.jit
    def step(params, opt_state):
        def loss(params):
            denominators = model.denominators(batch)
            return model.loss(
                tree_of(params), state, batch, None, denominators=denominators, train=True
            )

        (_, out), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return params + updates, opt_state, model.summarise(out), gradient

    opt_state = optimizer.init(params)
    losses, routed = [], 0
    for _ in range(8):
        params, opt_state, summary, gradient = step(params, opt_state)
        losses.append(float(summary["loss"]))
        routing = model.host_routing(summary)
        routed = routed + routing["count_LE"]
        np.testing.assert_array_equal(routing["kept_L"], 2 * 44)
    assert all(after < before for before, after in itertools.pairwise(losses))
    assert losses[-1] < 0.9 * losses[0]
    # Every expert that saw a token learned; the balance losses reach every router.
    segments = tree_of(gradient)["segments"]
    for row, (segment, starts) in enumerate((("1", 8), ("2", 6), ("3", 8))):
        ffn = segments[segment]["0"]["ffn"]
        assert np.abs(ffn["router"]["w_DE"]).max(axis=(0, 1)).all()
        assert routed[row, :starts].sum() == 8 * 88
        for leaf in jax.tree.leaves(ffn["experts"]):
            assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0
