import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from model_samples import config

from moejax.experts import MoeConfig, WidthPlan
from moejax.models import Transformer
from moejax.models.attention import AttentionConfig
from moejax.models.block import Block
from moejax.routing.routers import TopK

WIDTHS = (32, 64, 128, 256)
MOE = MoeConfig(
    4, WidthPlan("explicit", explicit=WIDTHS), TopK(k=2, init_std=0.05), shared_width=96
)
CONFIG = config(
    MOE, d_model=64, num_layers=3, first_dense=1, ffn_width=48, vocab_size=200,
    attention=AttentionConfig(heads=4, kv_heads=2),
)  # fmt: skip


@pytest.fixture(scope="module")
def init():
    return jax.jit(Transformer(CONFIG).init)


@pytest.fixture(scope="module")
def params(init):
    return jax.tree.map(np.asarray, init(jax.random.key(0))[0])


def std(array):
    assert abs(np.mean(array)) < 4 * np.std(array) / np.sqrt(array.size)
    return float(np.std(array))


def test_projections_start_by_their_fan_in(params):
    block = params["segments"]["1"]["0"]
    attention, ffn = block["attention"], block["ffn"]
    out_scale = (2 * 3) ** -0.5
    for name in ("q_DHd", "k_DGd", "v_DGd"):
        assert std(attention[name]) == pytest.approx(64**-0.5, rel=0.05)
    assert std(attention["o_HdD"]) == pytest.approx(out_scale * 64**-0.5, rel=0.05)
    for name in ("gate_NUD", "up_NUD"):
        assert std(ffn["experts"][name]) == pytest.approx(64**-0.5, rel=0.05)
    assert std(ffn["shared"]["down_FD"]) == pytest.approx(out_scale * 96**-0.5, rel=0.05)
    assert std(ffn["router"]["w_DE"]) == pytest.approx(0.05, rel=0.15)
    dense = params["segments"]["0"]["0"]["ffn"]
    assert std(dense["gate_FD"]) == pytest.approx(64**-0.5, rel=0.05)
    assert std(dense["down_FD"]) == pytest.approx(out_scale * 48**-0.5, rel=0.05)
    for table in (params["embed"], params["head"]):
        assert std(table["table_VD"]) == pytest.approx(64**-0.5, rel=0.05)


def test_the_down_projection_of_every_expert_starts_by_its_own_width(params):
    down_LNUD = params["segments"]["1"]["0"]["ffn"]["experts"]["down_NUD"]
    unit = down_LNUD.shape[2]
    start = 0
    for width in WIDTHS:
        rows = down_LNUD[:, start : start + width // unit]
        start += width // unit
        assert std(rows) == pytest.approx(6**-0.5 * width**-0.5, rel=0.05)
    assert start == down_LNUD.shape[1]


def test_norm_scales_start_at_one(params):
    leaves = jax.tree.leaves_with_path(params)
    scales = [leaf for path, leaf in leaves if "scale" in jax.tree_util.keystr(path)]
    assert len(scales) == 5
    assert all(np.all(np.asarray(scale) == 1) for scale in scales)


def test_the_seed_decides_everything_and_nothing_is_drawn_twice(init, params):
    again, other = (jax.tree.map(np.asarray, init(jax.random.key(seed))[0]) for seed in (0, 1))
    for path, leaf in jax.tree.leaves_with_path(params):
        lookup = dict(jax.tree.leaves_with_path(again))
        np.testing.assert_array_equal(leaf, lookup[path])
        if "scale" not in jax.tree_util.keystr(path):
            assert not np.array_equal(leaf, dict(jax.tree.leaves_with_path(other))[path])
    drawn = [
        np.asarray(row).reshape(-1)[:40]
        for path, leaf in jax.tree.leaves_with_path(params)
        if "scale" not in jax.tree_util.keystr(path)
        for row in (leaf if "segments" in jax.tree_util.keystr(path) else [leaf])
    ]
    for index, one in enumerate(drawn):  # layers and roles differ, also up to a factor
        for two in drawn[:index]:
            assert abs(np.corrcoef(one, two)[0, 1]) < 0.9


def test_layers_of_a_segment_start_like_blocks_of_their_own():
    model = Transformer(config())
    stack = model.segments[0]
    key = jax.random.key(5)
    params, _ = jax.jit(stack.init)(key)
    keys = jax.random.split(jax.random.fold_in(key, 0), 2)

    @jax.jit
    def alone(key):
        block = Block(model.config, None, rngs=nnx.Rngs(key))
        return nnx.to_pure_dict(nnx.state(block, nnx.Param))

    want = alone(keys[1])
    assert jax.tree.structure(want) == jax.tree.structure(params["0"])
    for got, leaf in zip(jax.tree.leaves(params["0"]), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(got[1], leaf, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_have_the_dtype_asked_for_and_routers_float32(dtype):
    model = Transformer(dataclasses.replace(CONFIG, param_dtype=dtype))
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    for path, leaf in jax.tree.leaves_with_path(params):
        router = "'router'" in jax.tree_util.keystr(path)
        assert leaf.dtype == (jnp.float32 if router else jnp.dtype(dtype)), path


def test_a_tied_model_has_one_table():
    model = Transformer(dataclasses.replace(CONFIG, tied_embeddings=True))
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    assert "head" not in params
    assert model.head_table(params | {"embed": {"table_VD": jnp.ones((2, 3))}}).shape == (2, 3)
