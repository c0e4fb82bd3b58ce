"""Low-rank updates on meshes, in narrow dtypes, and which arrays get them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tuned_models import (
    UNEQUAL,
    Bowl,
    eight_devices,
    model_config,
    planned,
    random_params,
    trained,
)

from configs import ladder, lm
from configs.grids import bases
from configs.grids import finetune as finetune_grid
from moejax.config import ConfigError, override
from moejax.experts import ZeroCompute, fine_grained
from moejax.finetune.counts import matched, total_parameters, trainable_parameters
from moejax.finetune.leaves import ROLES, flat, leaves_of
from moejax.finetune.methods import ESFT, Full, LoRA, MultiLoRA, Partial
from moejax.models import Transformer
from moejax.models.attention import LatentAttentionConfig
from moejax.routing.routers import MoEPlusPlus
from moejax.train.optimizer import OptimizerConfig, decay_mask

MLA = LatentAttentionConfig(
    heads=2, q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8
)
EVERYTHING = model_config(
    moe=UNEQUAL.__class__(
        experts=4,
        widths=UNEQUAL.widths.__class__(mean=8),
        router=MoEPlusPlus(k=2, zero_experts=1),
        zero_compute=ZeroCompute(zero=1, copy=1, constant=1),
        shared_width=8,
        shared_gate=True,
    ),
    attention=MLA,
    num_layers=3,
    first_dense=1,
)
"""Latent attention, a dense layer, gates, experts without weights, a router of two matrices."""


@pytest.mark.parametrize(
    "method",
    [
        MultiLoRA(2, modules=2, targets=("routed", "router")),
        pytest.param(LoRA(2, per_expert=False), marks=pytest.mark.slow),
    ],
    ids=["multilora", "lora, shared by experts"],
)
def test_a_mesh_draws_and_trains_the_same_factors(method):
    """Experts of different widths move there, and slots are padded: padding stays zero, or the
    stored parameters would differ."""
    config = model_config()
    params, router_state = random_params(Transformer(config))
    (_, one, alone), (_, other, spread) = (
        trained(method, config, params, router_state, steps=2, parallel=parallel, kind=Bowl)
        for parallel in (None, eight_devices())
    )
    for want, got in ((one, other), (alone.trainable, spread.trainable)):
        want, got = flat(want), flat(got)
        assert want.keys() == got.keys()
        for path, leaf in want.items():
            np.testing.assert_allclose(got[path], leaf, atol=1e-5, err_msg=path)
    base, after = flat(params), flat(one)
    moved = {path for path in base if (base[path] != after[path]).any()}
    assert moved == set(planned(method, Transformer(config)).updates)


def test_every_array_has_a_role_and_all_matrices_are_updated():
    model = Transformer(EVERYTHING)
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    leaves = leaves_of(model, params)
    assert {leaf.role for leaf in leaves.values()} == set(ROLES)
    updated = set(planned(LoRA(2), model).updates)
    left = leaves.keys() - updated
    assert {re.sub(r"^segments/\d+/\d+/", "", path) for path in left} == {
        "embed/table_VD",
        "head/table_VD",
        "final_norm/scale_D",
        "attention_norm/scale_D",
        "ffn_norm/scale_D",
        "attention/q_norm/scale_D",
        "attention/kv_norm/scale_D",
        "ffn/gates/shared_D",
        "ffn/gates/mix_C2D",
        "ffn/gates/bias_CD",
    }


def test_updates_fit_every_kind_of_matrix():
    model = Transformer(EVERYTHING)
    params, _ = random_params(model)
    tuning = planned(MultiLoRA(2, modules=2), model)

    @jax.jit
    def updated(params):
        made, frozen = tuning.split(params, jax.random.key(0))
        return tuning.assemble(jax.tree.map(lambda leaf: leaf + 0.1, made), frozen)

    whole = updated(params)
    assert jax.tree.structure(whole) == jax.tree.structure(params)
    for path, leaf in flat(whole).items():
        assert leaf.shape == flat(params)[path].shape and leaf.dtype == flat(params)[path].dtype
        changed = (np.asarray(leaf) != np.asarray(flat(params)[path])).mean()
        assert changed > 0.9 if path in tuning.updates else changed == 0, path


def test_scales_do_not_decay_and_factors_do():
    model = Transformer(model_config())
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    made, _ = jax.eval_shape(planned(MultiLoRA(2), model).split, params, jax.random.key(0))
    for path, decays in flat(decay_mask(OptimizerConfig(), made)).items():
        assert decays == (not path.rpartition("/")[2].startswith("scale_")), path


def test_factors_of_a_narrow_base_are_float32_and_the_sum_is_rounded_once():
    model = Transformer(model_config(param_dtype="bfloat16"))
    params, _ = random_params(model)
    tuning = planned(LoRA(2, targets=("routed",)), model)
    made, frozen = tuning.split(params, jax.random.key(0))
    made = jax.tree.map(lambda leaf: leaf + 0.01, made)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    path = "segments/0/0/ffn/experts/up_NUD"
    merged, base = flat(tuning.assemble(made, frozen))[path], flat(params)[path]
    assert merged.dtype == jnp.bfloat16
    expected = np.asarray(base, np.float32) + np.asarray(tuning.deltas(made)[path])
    np.testing.assert_array_equal(
        np.asarray(merged), np.asarray(jnp.asarray(expected, jnp.bfloat16))
    )


def test_what_an_array_draws_does_not_depend_on_the_other_targets():
    model = Transformer(model_config())
    params, _ = random_params(model)
    one, all_of_them = (
        flat(jax.jit(planned(LoRA(2, targets=targets), model).split)(params, jax.random.key(5))[0])
        for targets in (("attention",), ())
    )
    assert one and one.keys() < all_of_them.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, all_of_them[path])


@pytest.mark.parametrize("per_expert", [True, False])
@pytest.mark.parametrize("wanted", [1, 5_000, 20_000])
def test_a_matched_rank_is_the_nearest(wanted, per_expert):
    config = model_config()
    found = matched(MultiLoRA(99, modules=2, per_expert=per_expert), config, wanted)
    sizes = {
        rank: trainable_parameters(MultiLoRA(rank, modules=2, per_expert=per_expert), config)
        for rank in range(max(1, found.rank - 2), found.rank + 3)
    }
    assert abs(sizes[found.rank] - wanted) == min(abs(size - wanted) for size in sizes.values())


def test_partial_matches_by_layers_and_a_selection_has_no_size():
    config = model_config()
    half = trainable_parameters(Partial(1), config)
    assert matched(Partial(2), config, half + 5) == Partial(1)
    assert trainable_parameters(Partial(2), config) == 2 * half
    assert trainable_parameters(Full(), config) == total_parameters(config)
    with pytest.raises(ConfigError, match="match: ESFT trains what it is told to"):
        matched(ESFT({"0": (0,)}), config, 100)


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_the_shipped_comparison_is_of_equal_sizes(cut):
    """Low-rank methods against 1, 2 and 4 experts a layer of the bases of configs/grids."""
    overrides = {one.method: one.overrides for one in finetune_grid.get_comparison().treatments}
    model = lm.experiment(ladder.SIZES[bases.SIZE], "top_k").model
    own = fine_grained(model.moe, cut)
    changes = {"experts": own.experts, "widths.mean": own.widths.mean, "router.k": own.router.k}
    config = override(model, {f"moe.{key}": value for key, value in changes.items()})
    for experts in (1, 2, 4):
        chosen = {str(layer): tuple(range(experts)) for layer in range(config.num_layers)}
        wanted = trainable_parameters(ESFT(chosen), config)
        for method in (LoRA(**overrides["lora"]), MultiLoRA(**overrides["multilora"])):
            said = []
            found = trainable_parameters(matched(method, config, wanted, said.append), config)
            assert 0.85 < found / wanted < 1.15, (method, experts)
            assert bool(said) == (abs(found / wanted - 1) > 0.1)
