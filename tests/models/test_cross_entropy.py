import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.models.cross_entropy import chunked_cross_entropy

BATCH, LENGTH, WIDTH, VOCAB = 2, 7, 5, 11


def sample(rng, dtype):
    x_BSD = rng.standard_normal((BATCH, LENGTH, WIDTH))
    table_VD = 2 * rng.standard_normal((VOCAB, WIDTH))
    targets_BS = rng.integers(0, VOCAB, (BATCH, LENGTH))
    mask_BS = rng.integers(0, 2, (BATCH, LENGTH)).astype(float)
    mask_BS[0, :2] = 0, 0.5  # weights need not be whole
    return [jnp.asarray(a, dtype) for a in (x_BSD, table_VD, mask_BS)] + [jnp.asarray(targets_BS)]


def naive(x_BSD, table_VD, mask_BS, targets_BS):
    logits = jnp.einsum("bsd,vd->bsv", x_BSD, table_VD, precision="highest")
    logp = jax.nn.log_softmax(logits)
    nll_BS = -jnp.take_along_axis(logp, targets_BS[..., None], -1)[..., 0]
    return (nll_BS * mask_BS).sum(), nll_BS


def ours(chunk, dtype):
    def function(x_BSD, table_VD, mask_BS, targets_BS):
        return chunked_cross_entropy(
            x_BSD, table_VD, targets_BS, mask_BS, chunk=chunk, logits_dtype=dtype
        )

    return function


def with_gradients(function):
    def scaled(*args):
        total, nll_BS = function(*args)
        return 0.37 * total, nll_BS  # a cotangent other than one

    return jax.jit(jax.value_and_grad(scaled, argnums=(0, 1, 2), has_aux=True))


def assert_close(got, want, bound):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        assert np.abs(a - b).max() <= bound * np.abs(b).max()


@pytest.mark.parametrize("chunk", [0, 1, 3, 4, 7, 99])
def test_values_and_gradients_in_float64(rng, chunk):
    with jax.enable_x64(True):
        args = sample(rng, jnp.float64)
        want = with_gradients(naive)(*args)
        got = with_gradients(ours(chunk, jnp.float64))(*args)
        assert got[0][0].dtype == jnp.float64
        assert_close(got, want, 1e-10)


@pytest.mark.parametrize("chunk", [0, 3])
def test_values_and_gradients_in_float32(rng, chunk):
    args = sample(rng, jnp.float32)
    assert_close(
        with_gradients(ours(chunk, jnp.float32))(*args), with_gradients(naive)(*args), 1e-5
    )


def test_large_logits_do_not_overflow(rng):
    x_BSD, table_VD, mask_BS, targets_BS = sample(rng, jnp.float32)
    args = (1e4 * x_BSD, table_VD, jnp.ones_like(mask_BS), targets_BS)
    got, want = with_gradients(ours(2, jnp.float32))(*args), with_gradients(naive)(*args)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))
    assert_close(got, want, 1e-5)


def test_without_a_gradient_the_values_are_the_same(rng):
    args = sample(rng, jnp.float32)
    assert_close(jax.jit(ours(3, jnp.float32))(*args), naive(*args), 1e-5)


def test_masked_positions_have_a_loss_but_no_influence(rng):
    x_BSD, table_VD, mask_BS, targets_BS = sample(rng, jnp.float32)
    f = with_gradients(ours(3, jnp.float32))
    (total, nll_BS), (dx, dtable, _) = f(x_BSD, table_VD, mask_BS, targets_BS)
    off = np.asarray(mask_BS) == 0
    assert off.any()
    assert np.all(np.asarray(dx)[off] == 0)
    assert np.all(np.asarray(nll_BS)[off] > 0)
    elsewhere = jnp.where(off, (targets_BS + 1) % VOCAB, targets_BS)
    noise = jnp.where(off[..., None], 3 * x_BSD + 1, x_BSD)
    (total_2, _), (_, dtable_2, _) = f(noise, table_VD, mask_BS, elsewhere)
    np.testing.assert_allclose(total_2, total, rtol=1e-6)
    np.testing.assert_allclose(dtable_2, dtable, atol=1e-6)


def test_nll_carries_no_gradient(rng):
    x_BSD, table_VD, mask_BS, targets_BS = sample(rng, jnp.float32)

    def summed_nll(x_BSD):
        return ours(3, jnp.float32)(x_BSD, table_VD, mask_BS, targets_BS)[1].sum()

    assert np.all(np.asarray(jax.jit(jax.grad(summed_nll))(x_BSD)) == 0)


def test_bfloat16_logits_are_coarser_and_not_wrong(rng):
    args = sample(rng, jnp.float32)
    exact = float(naive(*args)[0])
    rounded = float(jax.jit(ours(3, jnp.bfloat16))(*args)[0])
    assert rounded != pytest.approx(exact, rel=1e-6)  # they were rounded
    assert rounded == pytest.approx(exact, rel=1e-2)


def test_bfloat16_inputs_give_bfloat16_gradients_and_a_float32_loss(rng):
    x_BSD, table_VD, mask_BS, targets_BS = sample(rng, jnp.float32)
    exact = with_gradients(naive)(x_BSD, table_VD, mask_BS, targets_BS)
    args = (x_BSD.astype(jnp.bfloat16), table_VD.astype(jnp.bfloat16), mask_BS, targets_BS)
    (total, nll_BS), gradients = with_gradients(ours(3, jnp.float32))(*args)
    assert total.dtype == nll_BS.dtype == jnp.float32
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    for a, b in zip(gradients, exact[1], strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.03 * np.abs(b).max())


def shapes_of(jaxpr):
    """Shapes of every value of a jaxpr and of the jaxprs inside it."""
    for equation in jaxpr.eqns:
        for variable in (*equation.invars, *equation.outvars):
            yield getattr(variable.aval, "shape", ())
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        ):
            if hasattr(inner, "jaxpr"):
                inner = inner.jaxpr
            if hasattr(inner, "eqns"):
                yield from shapes_of(inner)


@pytest.mark.parametrize("chunk, held", [(2, False), (0, True)])
def test_chunked_never_holds_the_logits_of_a_batch(chunk, held):
    batch, length, width, vocab = 3, 8, 2, 50
    args = (
        jnp.zeros((batch, length, width)),
        jnp.zeros((vocab, width)),
        jnp.zeros((batch, length)),
        jnp.zeros((batch, length), jnp.int32),
    )
    step = jax.value_and_grad(ours(chunk, jnp.float32), argnums=(0, 1), has_aux=True)
    sizes = [int(np.prod(shape)) for shape in shapes_of(jax.make_jaxpr(step)(*args).jaxpr)]
    assert (max(sizes) >= batch * length * vocab) is held
    if not held:
        assert max(sizes) == batch * chunk * vocab
