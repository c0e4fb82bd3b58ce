"""The analytic counts are those of the parameters that `init` makes."""

import dataclasses

import jax
import numpy as np
import pytest
from model_samples import EQUAL, KINDS, UNEQUAL, config

from moejax.config import counts
from moejax.experts import MoeConfig, WidthPlan
from moejax.models import ModelConfig, Transformer
from moejax.models.attention import AttentionConfig
from moejax.routing.routers import TopK, TopP

GQA = AttentionConfig(heads=4, kv_heads=2, head_dim=6, qk_norm=True)


def sizes(model):
    """Real parameters by role: matrices (without routers), routers, norm scales."""
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    assert not jax.tree.leaves(state)
    found = {"matrices": 0, "router": 0, "norms": 0}
    for path, leaf in jax.tree.leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        role = "router" if "'router'" in name else "norms" if "scale" in name else "matrices"
        found[role] += int(np.prod(leaf.shape))
    return found


@pytest.mark.parametrize(
    "model_config",
    [
        *(config(moe) for moe in KINDS.values()),
        config(EQUAL, tied_embeddings=True),
        config(UNEQUAL, attention=GQA),
        config(dataclasses.replace(EQUAL, shared_width=12), first_dense=1, num_layers=4),
        config(
            EQUAL, moe_variants={"six": UNEQUAL}, layers=("dense", "moe", "six", "moe"),
            num_layers=4, attention=GQA, tied_embeddings=True,
        ),
        config(EQUAL, num_layers=7, moe_every=3, scan=False),
    ],
)  # fmt: skip
def test_counts_are_those_of_the_parameters(model_config):
    counted = counts.parameters(model_config.shape())
    assert sizes(Transformer(model_config)) == {
        "matrices": counted.total,
        "router": counted.router,
        "norms": counted.norms,
    }


def llama(layers, d_model, heads, **changes):
    attention = AttentionConfig(heads=heads)
    return ModelConfig(
        vocab_size=32000, d_model=d_model, num_layers=layers, attention=attention, **changes
    )


@pytest.mark.parametrize(
    "model_config, total, active",
    [
        (llama(24, 1024, 16, ffn_width=2816), 373_817_344, 373_817_344),
        (llama(12, 768, 12, ffn_width=12288), 417_202_176, 417_202_176),
        (
            llama(12, 768, 12, moe=MoeConfig(8, WidthPlan("arithmetic", 1536, 96), TopK(k=2))),
            417_202_176,
            162_398_208,
        ),
        (
            llama(24, 1024, 16, moe=MoeConfig(8, WidthPlan("hybrid", 4096, 256), TopK(k=2))),
            2_582_118_400,
            770_179_072,
        ),
    ],
)
def test_published_counts_from_a_model_config(model_config, total, active):
    counted = counts.parameters(model_config.shape())
    assert (counted.total, counted.active) == (total, active)
    assert sizes(Transformer(model_config))["matrices"] == total


def test_dense_374m_with_its_norm_scales():
    model_config = llama(24, 1024, 16, ffn_width=2816)
    assert counts.parameters(model_config.shape()).everything == 373_817_344 + 50_176


def test_deepseek_moe_16b_from_a_model_config():
    moe = MoeConfig(64, WidthPlan(mean=1408), TopK(k=6, renormalise=False), shared_width=2816)
    model_config = ModelConfig(
        vocab_size=102400, d_model=2048, num_layers=28, ffn_width=10944,
        attention=AttentionConfig(heads=16), moe=moe, first_dense=1,
    )  # fmt: skip
    counted = counts.parameters(model_config.shape())
    assert sum(sizes(Transformer(model_config)).values()) == counted.everything == 16_375_728_128
    assert round(counted.active / 1e9, 3) == 2.825


def test_flops_follow_the_experts_in_use():
    two = config(EQUAL).shape()
    three = config(dataclasses.replace(EQUAL, router=TopK(k=3))).shape()
    per_layer = counts.flops_per_width(two) * 8
    assert counts.flops_per_token(three, 9) - counts.flops_per_token(two, 9) == 2 * per_layer
    measured = counts.flops_per_token(two, 9, (24.0, 24.0))
    assert measured == counts.flops_per_token(three, 9)


def test_equal_mean_activation_means_equal_flops_whatever_the_widths():
    plans = [WidthPlan(mean=32), WidthPlan("arithmetic", mean=32, unit=2)]
    shapes = [config(MoeConfig(8, plan, TopK(k=2))).shape() for plan in plans]
    shapes.append(config(MoeConfig(8, plans[1], TopP(p=0.2))).shape())  # 2 of 8 to start with
    assert len({counts.flops_per_token(shape, 16) for shape in shapes}) == 1
    dense = config(ffn_width=64).shape()
    router = 2 * 3 * 2 * 16 * 8
    assert counts.flops_per_token(shapes[0], 16) == counts.flops_per_token(dense, 16) + router
