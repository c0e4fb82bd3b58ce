"""Impossible models are refused before anything is compiled, in one line."""

import dataclasses

import pytest
from model_samples import EQUAL, UNEQUAL, config

from moejax.config import ConfigError, build, check, to_config_dict, to_plain
from moejax.experts import WidthPlan
from moejax.models import ModelConfig, Transformer
from moejax.models.attention import AttentionConfig
from moejax.routing.routers import TopK, TopP


def refusal(bad):
    with pytest.raises(ConfigError) as caught:
        Transformer(bad)
    message = str(caught.value)
    assert "\n" not in message
    return message


def moe(**changes):
    return dataclasses.replace(EQUAL, **changes)


@pytest.mark.parametrize(
    "bad, start, end",
    [
        (
            config(d_model=18, attention=AttentionConfig(heads=4)),
            "model.attention.heads: 4 does not divide d_model 18",
            "nearest valid value 3",
        ),
        (
            config(attention=AttentionConfig(heads=4, kv_heads=3)),
            "model.attention.kv_heads: 3 does not divide 4 heads",
            "nearest valid value 2",
        ),
        (
            config(d_model=12, attention=AttentionConfig(heads=4)),
            "model.attention.head_dim: RoPE needs an even head width, got 3",
            "nearest valid value 4",
        ),
        (
            config(layers=("dense", "moes"), moe=EQUAL),
            "model.layers[1]: unknown layer 'moes'; did you mean 'moe'?",
            "known: dense, moe",
        ),
        (
            config(layers=("dense", "moe")),
            "model.layers[1]: unknown layer 'moe'",
            "known: dense",
        ),
        (
            config(layers=("dense",) * 3),
            "model.layers: names 3 layers but model.num_layers is 2",
            "nearest valid value 3",
        ),
        (
            config(first_dense=3, moe=EQUAL),
            "model.first_dense: 3 of 2 layers",
            "nearest valid value 1",
        ),
        (
            config(moe_every=3, moe=EQUAL),
            "model.moe: no layer uses it: first_dense=0 and moe_every=3 leave none of 2",
            "nearest valid value: moe=None",
        ),
        (
            config(moe_variants={"moe": UNEQUAL}, layers=("moe", "moe")),
            "model.moe_variants.moe: the name is taken",
            "nearest valid value 'moe_2'",
        ),
        (
            config(moe(router=TopK(k=5))),
            "model.moe.router",
            "nearest valid value 4",
        ),
        (
            config(moe(router=TopP(p=0.5, k_max=9))),
            "model.moe.router.k_max: 9 experts per token but there are 4",
            "nearest valid value 4",
        ),
        (
            config(moe(widths=WidthPlan("explicit", unit=4, explicit=(4, 6, 8, 8)))),
            "model.moe.widths.explicit[1]: width 6 is not a multiple of unit 4",
            "nearest valid value 8",
        ),
        (
            config(moe_variants={"odd": moe(router=TopK(k=7))}, layers=("odd", "dense")),
            "model.moe_variants.odd.router",
            "nearest valid value 4",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(bad, start, end):
    message = refusal(bad)
    assert message.startswith(start)
    assert message.endswith(end)


@pytest.mark.parametrize(
    "bad, words",
    [
        (config(moe(router=TopP(p=1.5))), ("model.moe.router.p", "1.5", "nearest valid value: 1")),
        (config(remat="dot"), ("model.remat", "did you mean 'dots'?")),
        (config(compute_dtype="bf16"), ("model.compute_dtype", "bfloat16")),
        (config(vocab_size=1), ("model.vocab_size", "nearest valid value: 2")),
        (config(attention=AttentionConfig(backend="flash")), ("model.attention.backend",)),
        (config(moe(backend="tile")), ("model.moe.backend", "did you mean 'tiles'?")),
    ],
)
def test_values_out_of_range_are_refused(bad, words):
    message = refusal(bad)
    assert all(word in message for word in words)


@pytest.mark.parametrize(
    "good",
    [
        config(),
        config(EQUAL, first_dense=1, scan=False, remat="dots"),
        config(moe_variants={"small": UNEQUAL}, layers=("small", "dense")),
        config(attention=AttentionConfig(heads=2, kv_heads=1, head_dim=6, qk_norm=True)),
    ],
)
def test_a_model_config_survives_the_trip_through_files_and_flags(good):
    check(good)
    assert build(ModelConfig, to_config_dict(good)) == good
    assert build(ModelConfig, to_plain(good)) == good
