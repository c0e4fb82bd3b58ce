"""MultiLoRA's known answers (methods.md G, i to v), and LoRA's beside them.

`W = W0 + (alpha / r) sum_m diag(s_m) B_m A_m`, A_m [r, in], B_m [out, r], s_m [out].
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tuned_models import UNEQUAL, loss_of_layers, model_config, planned, random_params

from moejax.finetune.leaves import Leaf, flat, nested
from moejax.finetune.lowrank import Shape, update_of
from moejax.finetune.methods import LoRA, MultiLoRA
from moejax.models import Transformer

SPEC = UNEQUAL.spec


@pytest.mark.parametrize("method", [LoRA(3), MultiLoRA(3, modules=2)])
def test_i_the_model_is_the_base_at_first_whatever_the_seed(method):
    model = Transformer(model_config())
    params, _ = random_params(model)
    tuning = planned(method, model)

    @jax.jit
    def first(seed):
        trainable, frozen = tuning.split(params, jax.random.key(seed))
        return trainable, tuning.assemble(trainable, frozen)

    drawn = []
    for seed in (0, 1, 17):
        trainable, whole = first(seed)
        for path, leaf in flat(whole).items():
            np.testing.assert_array_equal(leaf, flat(params)[path], err_msg=path)
        drawn.append({path: x for path, x in flat(trainable).items() if "/in_" in path})
    # Not because nothing is there: A is drawn, and differs from seed to seed.
    for path, leaf in drawn[0].items():
        assert np.abs(leaf).max() > 0 and (leaf != drawn[1][path]).any(), path


@pytest.mark.parametrize(
    "method, moving",
    [(MultiLoRA(2, modules=2), "scale_"), (LoRA(2), "out_")],
    ids=["multilora", "lora"],
)
def test_ii_the_first_gradient_reaches_only_what_starts_at_zero(method, moving):
    """s of MultiLoRA, B of LoRA."""
    model = Transformer(model_config())
    params, state = random_params(model)
    tuning = planned(method, model)
    trainable, frozen = tuning.split(params, jax.random.key(0))

    @jax.jit
    @jax.grad
    def gradient(trainable):
        return loss_of_layers(model, tuning.assemble(trainable, frozen), state)

    for path, grad in flat(gradient(trainable)).items():
        name = path.rpartition("/")[2]
        assert (np.abs(grad).max() > 0) == name.startswith(moving), path


@pytest.mark.parametrize(
    "shape, expected",
    [
        (Shape(8, modules=3, scaled=True), 3 * (8 * (4096 + 4096) + 4096)),
        (Shape(8), 8 * (4096 + 4096)),
    ],
)
def test_iii_parameters_of_a_matrix(shape, expected):
    """`n (r (in + out) + out)`; 208,896 for three modules of rank 8 on 4096 x 4096."""
    leaf = Leaf("segments/0/0/ffn/up_FD", "dense", True, (1, 4096, 4096), np.dtype("float32"), (0,))
    made = jax.eval_shape(lambda: update_of(leaf, True).init(jax.random.key(0), shape))
    assert sum(factor.size for factor in made.values()) == expected
    if shape.scaled:
        assert expected == 208_896


@pytest.mark.parametrize("per_expert", [True, False])
def test_iii_parameters_of_a_model_with_experts_of_different_widths(per_expert):
    """Every expert's matrices by the formula; with factors that are shared, the side of the model
    width is there once."""
    config = model_config()
    rank, modules, d = 3, 2, config.d_model
    method = MultiLoRA(rank, modules=modules, per_expert=per_expert)
    model = Transformer(config)
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    made, _ = jax.eval_shape(planned(method, model).split, params, jax.random.key(0))

    def of_matrix(into, out):
        return modules * (rank * (into + out) + out)

    widths, total = SPEC.widths, sum(SPEC.widths)
    up = sum(of_matrix(d, width) for width in widths) if per_expert else of_matrix(d, total)
    down = sum(of_matrix(width, d) for width in widths) if per_expert else of_matrix(total, d)
    head = d // 2 * 2
    expected = {
        "experts": 2 * up + down,
        "shared": 2 * of_matrix(d, UNEQUAL.shared_width) + of_matrix(UNEQUAL.shared_width, d),
        "attention": 4 * of_matrix(d, head),
        "router": of_matrix(d, UNEQUAL.experts),
    }
    for part, count in expected.items():
        sizes = [leaf.size for path, leaf in flat(made).items() if f"/{part}/" in path]
        assert sum(sizes) == config.num_layers * count, part
    assert sum(leaf.size for leaf in jax.tree.leaves(made)) == 2 * sum(expected.values())


def test_iv_one_module_whose_scales_are_one_is_lora():
    model = Transformer(model_config())
    params, _ = random_params(model)
    lora, multi = (planned(method, model) for method in (LoRA(4), MultiLoRA(4, modules=1)))
    shapes, _ = jax.eval_shape(lora.split, params, jax.random.key(3))
    factors = noisy(shapes, seed=0)
    first, _ = jax.eval_shape(multi.split, params, jax.random.key(4))
    assert flat(factors).keys() < flat(first).keys()
    given = nested(
        {
            path: flat(factors).get(path, np.ones(leaf.shape, np.float32))
            for path, leaf in flat(first).items()
        }
    )
    one, other = (
        jax.jit(tuning.assemble)(own, params) for tuning, own in ((lora, factors), (multi, given))
    )
    for path, leaf in flat(one).items():
        np.testing.assert_allclose(flat(other)[path], leaf, rtol=1e-6, atol=1e-7, err_msg=path)


def noisy(tree, seed):
    """Arrays of these shapes, nothing of them zero."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: random.standard_normal(leaf.shape).astype(leaf.dtype), tree)


METHODS = {
    "lora": LoRA(3, alpha=5.0),
    "multilora": MultiLoRA(3, alpha=5.0, modules=2),
    "lora, shared by experts": LoRA(3, alpha=5.0, per_expert=False),
    "multilora, shared by experts": MultiLoRA(3, alpha=5.0, modules=2, per_expert=False),
}


@pytest.mark.parametrize("kind", METHODS)
def test_v_merged_weights_give_what_a_branch_beside_the_base_gives(kind):
    """`x W0 + (alpha / r) sum (x A) B s`, in NumPy and from the factors alone, for every matrix of
    every layer and expert: 1e-10 in float64."""
    method = METHODS[kind]
    with jax.enable_x64(True):
        model = Transformer(model_config())
        params, _ = random_params(model, dtype=jnp.float64)
        tuning = planned(method, model)
        shapes, _ = jax.eval_shape(tuning.split, params, jax.random.key(0))
        factors = jax.tree.map(lambda leaf: leaf.astype(np.float64), noisy(shapes, 1))
        merged = jax.tree.map(np.asarray, flat(jax.jit(tuning.assemble)(factors, params)))
    seen = 0
    for path in tuning.updates:
        own = {
            name.rpartition("/")[2]: leaf
            for name, leaf in flat(factors).items()
            if name.startswith(path + "/")
        }
        for before, after, a, b, s in branches(path, flat(params)[path], merged[path], own):
            x = np.random.default_rng(seen).standard_normal((4, before.shape[0]))
            beside = sum((x @ a_m.T @ b_m.T) * s_m for a_m, b_m, s_m in zip(a, b, s, strict=True))
            expected = x @ before + method.alpha / method.rank * beside
            np.testing.assert_allclose(x @ after, expected, atol=1e-10, err_msg=path)
            assert np.abs(after - before).max() > 0.1, path
            seen += 1
    # Two layers of 4 matrices in attention, 3 shared, 1 router, 3 of each of 5 experts.
    assert seen == 2 * (4 + 3 + 1 + 15)


def branches(path, base, merged, factors):
    """Every matrix of a stacked array as `[in, out]`, before and after, with its factors A `[M, r,
    in]`, B `[M, out, r]` and s `[M, out]` (ones for LoRA)."""
    base = np.asarray(base)
    name = path.rpartition("/")[2]
    (inner,) = (factor for key, factor in factors.items() if key.startswith("in_"))
    (outer,) = (factor for key, factor in factors.items() if key.startswith("out_"))
    scale = next((factor for key, factor in factors.items() if key.startswith("scale_")), None)
    for layer in range(len(base)):
        if name.endswith("_NUD"):
            for expert in range(SPEC.num_experts):
                units = slice(SPEC.starts[expert], SPEC.starts[expert] + SPEC.units[expert])

                def hidden(factor, layer=layer, units=units):  # [N, U, M, ...] -> [M, F, ...]
                    own = factor[layer, units].reshape(-1, *factor.shape[3:])
                    return np.moveaxis(own, 1, 0)

                def whole(factor, layer=layer, expert=expert):  # [E, M, r, D] -> [M, r, D]
                    return factor[layer, min(expert, factor.shape[1] - 1)]

                pair = [leaf[layer, units].reshape(-1, base.shape[-1]) for leaf in (base, merged)]
                if name == "down_NUD":
                    a, b = hidden(inner).swapaxes(1, 2), whole(outer).swapaxes(1, 2)
                    s = np.ones(b.shape[:2]) if scale is None else whole(scale)
                    yield *pair, a, b, s
                else:
                    a, b = whole(inner), hidden(outer)
                    s = np.ones(b.shape[:2]) if scale is None else hidden(scale)
                    yield *(matrix.T for matrix in pair), a, b, s
            continue
        a = inner[layer].reshape(*inner.shape[1:3], -1)
        b = outer[layer].reshape(*outer.shape[1:3], -1).swapaxes(1, 2)
        s = np.ones(b.shape[:2]) if scale is None else scale[layer].reshape(b.shape[:2])
        # An output projection has two axes of inputs; an FFN's first matrices lie [out, in].
        pair = [
            leaf[layer].reshape(-1, a.shape[-1] if name in ("gate_FD", "up_FD") else b.shape[1])
            for leaf in (base, merged)
        ]
        if name in ("gate_FD", "up_FD"):
            pair = [matrix.T for matrix in pair]
        yield *pair, a, b, s


def test_first_values_are_those_of_torch():
    """Uniform in +-1/sqrt(in) (Kaiming, a = sqrt(5)); B of MultiLoRA in +-1/sqrt(r); the input of a
    down projection is as wide as its own expert."""
    config = dataclasses.replace(model_config(), d_model=64)
    model = Transformer(config)
    params, _ = random_params(model)
    made, _ = jax.jit(planned(MultiLoRA(8, modules=3), model).split)(params, jax.random.key(0))
    made = {path: np.asarray(leaf) for path, leaf in flat(made).items()}

    def check(values, bound):
        assert 0.9 * bound < np.abs(values).max() <= bound
        # The variance of a uniform number is a third of its bound's square.
        assert np.isclose(values.std(), bound / 3**0.5, rtol=0.15)

    experts = "segments/0/0/ffn/experts"
    check(made[f"{experts}/gate_NUD/in_EMrD"], 64**-0.5)
    check(made[f"{experts}/gate_NUD/out_NUMr"], 8**-0.5)
    check(made["segments/0/0/attention/q_DHd/in_MrD"], 64**-0.5)
    check(made["segments/0/0/attention/q_DHd/out_MrHd"], 8**-0.5)
    down = made[f"{experts}/down_NUD/in_NUMr"]
    for expert, width in enumerate(SPEC.widths):
        start = SPEC.starts[expert]
        check(down[:, start : start + SPEC.units[expert]], width**-0.5)
    assert not any(leaf.any() for path, leaf in made.items() if "/scale_" in path)
