"""bfloat16 products and parameters; float32 routers, losses, statistics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_samples import UNEQUAL, config, packed

from moejax.models import Transformer
from moejax.models.cross_entropy import chunked_cross_entropy
from moejax.routing import LossesConfig
from moejax.routing.losses import Entropy, ZLoss
from moejax.routing.routers import TopP

EXPERTS = 6
MOE = dataclasses.replace(
    UNEQUAL,
    router=TopP(p=0.5, renormalise=True),
    losses=LossesConfig(entropy=Entropy(0.01), z_loss=ZLoss(0.001)),
    shared_width=4,
)
LENGTH = 9


def make(param_dtype, compute_dtype, **changes):
    return Transformer(
        config(
            MOE,
            layers=("dense", "moe"),
            param_dtype=param_dtype,
            compute_dtype=compute_dtype,
            **changes,
        )
    )


@pytest.fixture(scope="module")
def batch():
    return packed([(4, 5), (6,)], LENGTH)


def abstract_step(model, batch):
    params, state = jax.eval_shape(model.init, jax.random.key(0))

    def loss(params, batch):
        denominators = model.denominators(batch)
        total, out = model.loss(
            params, state, batch, None, denominators=denominators, train=True, trace=True
        )
        return total, (out, model.summarise(out))

    step = jax.value_and_grad(loss, has_aux=True)
    return params, jax.eval_shape(step, params, batch), jax.make_jaxpr(step)(params, batch)


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_who_has_which_dtype(batch, param_dtype, compute_dtype):
    model = make(param_dtype, compute_dtype)
    params, ((loss, (out, summary)), gradient), _ = abstract_step(model, batch)
    assert loss.dtype == jnp.float32
    for leaf in jax.tree.leaves((out, summary)):
        assert leaf.dtype in (jnp.float32, jnp.int32)
    for name in ("prob_E", "entropy", "z"):
        assert getattr(out["layers"][0], name).dtype == jnp.float32
    assert jax.tree.map(lambda leaf: leaf.dtype, gradient) == jax.tree.map(
        lambda leaf: leaf.dtype, params
    )
    for name, leaf in summary.items():
        if name != "_routing":
            assert leaf.dtype == jnp.float32 and leaf.shape == ()


def products(jaxpr):
    """`(shapes, dtypes)` of the operands of every matrix product, inner jaxprs included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            avals = [variable.aval for variable in equation.invars]
            yield [aval.shape for aval in avals], [aval.dtype for aval in avals]
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from products(inner)


@pytest.mark.parametrize("backend", ["tiles", "loop"])
def test_only_routers_and_the_gradient_of_the_softmax_multiply_in_float32(batch, backend):
    # Everything else in float32 is a leak: one promoted operand makes a product twice as dear.
    # The attention weights' gradient is float32 in jax.nn.dot_product_attention, too.
    model = make("float32", "bfloat16", loss_chunk=3)
    model = Transformer(
        dataclasses.replace(model.config, moe=dataclasses.replace(MOE, backend=backend))
    )
    _, _, jaxpr = abstract_step(model, batch)
    found = list(products(jaxpr.jaxpr))
    wide = [shapes for shapes, dtypes in found if jnp.float32 in dtypes]
    routers = [shapes for shapes in wide if any(EXPERTS in shape for shape in shapes)]
    scores = [shapes for shapes in wide if any(shape[-2:] == (9, 9) for shape in shapes)]
    assert len(found) > 20
    assert len(routers) == 3  # logits, and the two products of their gradient
    assert len(scores) == 4  # of queries and of keys, in two layers
    assert len(wide) == len(routers) + len(scores)


def test_logits_are_rounded_to_the_dtype_asked_for(batch, rng):
    model = make("float32", "float32", logits_dtype="bfloat16")
    assert model.config.dtypes[2] == jnp.bfloat16
    x_BSD = jnp.asarray(rng.standard_normal((1, 4, 16)), jnp.float32)
    table_VD = jnp.asarray(rng.standard_normal((31, 16)), jnp.float32)
    logits = (x_BSD[0] @ table_VD.T).astype(jnp.bfloat16).astype(jnp.float32)
    want = -jax.nn.log_softmax(logits)[:, 7]
    _, nll_BS = chunked_cross_entropy(
        x_BSD, table_VD, jnp.full((1, 4), 7), jnp.ones((1, 4)), chunk=2,
        logits_dtype=model.config.dtypes[2],
    )  # fmt: skip
    np.testing.assert_allclose(nll_BS[0], want, rtol=1e-3)
