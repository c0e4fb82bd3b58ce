"""Published parameter counts (methods A.3, A.6, B.7, C.9), from the analytic formulas alone."""

import dataclasses

import pytest

from moejax.config.counts import (
    CONVENTION,
    LayerShape,
    ModelShape,
    flops_per_token,
    flops_per_width,
    parameters,
)
from moejax.config.widths import WidthPlan


def llama(layers, d_model, heads, *, vocab=32000, **ffn):
    layer = LayerShape(heads, heads, d_model // heads, norm_parameters=2 * d_model, **ffn)
    return ModelShape(vocab, d_model, (layer,) * layers, final_norm_parameters=d_model)


def hmoe(layers, d_model, hidden, *, strategy="uniform"):
    widths = WidthPlan(strategy, mean=hidden // 8, unit=hidden // 128).widths(8)
    return llama(layers, d_model, d_model // 64, widths=widths, nominal_active=2.0)


def test_A6_parameter_count_of_the_dense_374m_model():
    counts = parameters(llama(24, 1024, 16, dense_width=2816))
    assert counts.total == counts.active == 373_817_344
    assert counts.norms == 49 * 1024 == 50_176
    assert counts.everything == 373_817_344 + 50_176


@pytest.mark.parametrize("active, millions", [(2.0, 581.4), (1.76, 531.6)])
def test_dynamic_routing_with_16_experts(active, millions):
    shape = llama(24, 1024, 16, widths=(2816,) * 16, nominal_active=active)
    assert parameters(shape).total / 1e9 == pytest.approx(3.488, abs=5e-4)
    assert parameters(shape).active / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("strategy", ["uniform", "arithmetic", "hybrid"])
def test_B7_parameter_counts_of_the_small_model(strategy):
    counts = parameters(hmoe(12, 768, 12288, strategy=strategy))
    assert counts.total == 417_202_176
    assert counts.active == 162_398_208
    assert parameters(llama(12, 768, 12, dense_width=12288)).total == 417_202_176


@pytest.mark.parametrize("strategy", ["uniform", "arithmetic", "hybrid"])
def test_B7_parameter_counts_of_the_large_model(strategy):
    counts = parameters(hmoe(24, 1024, 32768, strategy=strategy))
    assert counts.total == 2_582_118_400
    assert counts.active == 770_179_072
    assert parameters(llama(12, 1024, 16, dense_width=32768)).total == 1_323_827_200


def test_C9_parameter_counts_of_deepseek_moe_16b():
    # The checkpoint's count (16,375,728,128) has routers and norms in it: `everything`.
    experts = llama(
        28, 2048, 16, vocab=102400, widths=(1408,) * 64, shared_width=2 * 1408, nominal_active=6.0,
        router_parameters=64 * 2048,
    )  # fmt: skip
    dense = dataclasses.replace(
        experts.layers[0], dense_width=10944, widths=(), shared_width=0, nominal_active=0.0,
        router_parameters=0,
    )  # fmt: skip
    counts = parameters(dataclasses.replace(experts, layers=(dense, *experts.layers[1:])))
    assert counts.everything == 16_375_728_128
    assert round(counts.everything / 1e9, 3) == 16.376
    assert round(counts.active / 1e9, 3) == 2.825
    assert counts.router == 27 * 64 * 2048


def test_C9_parameter_counts_of_deepseek_moe_2b():
    width = round(1280 * 8 / 3 / 4)
    shape = llama(
        9, 1280, 10, vocab=8192, widths=(width,) * 63, shared_width=width, nominal_active=7.0
    )
    counts = parameters(shape)
    assert round((counts.experts + counts.shared_experts) / 1e9, 3) == 1.887
    assert round((counts.active_experts + counts.shared_experts) / 1e9, 3) == 0.236


SMALL = ModelShape(
    vocab_size=10,
    d_model=4,
    layers=(
        LayerShape(heads=2, kv_heads=1, head_dim=2, dense_width=8, norm_parameters=8),
        LayerShape(
            heads=2, kv_heads=1, head_dim=2, widths=(2, 6), shared_width=3, nominal_active=1.0,
            router="top_k", router_parameters=8, norm_parameters=8,
        ),
    ),
    final_norm_parameters=4,
)  # fmt: skip


def test_a_small_model_by_hand():
    counts = parameters(SMALL)
    assert counts.embedding == counts.head == 40
    assert counts.attention == 2 * (4 * 4 + 4 * 2 + 4 * 2 + 4 * 4)  # q, k, v, o in two layers
    assert counts.dense_ffn == 3 * 4 * 8
    assert counts.experts == 3 * 4 * (2 + 6)
    assert counts.shared_experts == 3 * 4 * 3
    assert counts.active_experts == 3 * 4 * 4  # one expert of mean width 4
    assert (counts.router, counts.norms) == (8, 20)
    assert counts.non_embedding == 96 + 96 + 96 + 36 == 324
    assert counts.total == 324 + 80 == 404
    assert counts.active_non_embedding == 324 - 96 + 48 == 276
    assert counts.active == 276 + 80
    assert counts.everything == 404 + 8 + 20


def test_tied_embeddings_are_counted_once_but_multiplied_all_the_same():
    tied = dataclasses.replace(SMALL, tied_embeddings=True)
    assert parameters(tied).total == 404 - 40
    assert flops_per_token(tied, 6) == flops_per_token(SMALL, 6)


def test_flops_of_a_small_model_by_hand():
    # Multiply-adds of a token's forward pass, layer by layer; the mean context of 6 tokens is 3.
    attention = 4 * 4 + 4 * 2 + 4 * 2 + 4 * 4 + 3 * 2 * 2 + 3 * 2 * 2
    dense = attention + 3 * 4 * 8
    moe = attention + 4 * 2 + 3 * 4 * 4 + 3 * 4 * 3  # router, one expert, shared expert
    head = 4 * 10
    assert flops_per_token(SMALL, 6) == 3 * 2 * (dense + moe + head) == 2232


def test_measured_widths_change_what_is_active_and_nothing_else():
    planned, measured = parameters(SMALL), parameters(SMALL, (6.5,))
    assert measured.active - planned.active == 3 * 4 * (6.5 - 4)
    assert measured.active_non_embedding - planned.active_non_embedding == 30
    assert measured.total == planned.total
    extra = flops_per_token(SMALL, 6, (6.5,)) - flops_per_token(SMALL, 6)
    assert extra == 2.5 * flops_per_width(SMALL) == 2.5 * 3 * 2 * 3 * 4
    assert parameters(SMALL, (0.0,)).active_experts == 0


def test_an_ffn_without_a_gate_has_two_matrices():
    dense, moe = SMALL.layers
    ungated = dataclasses.replace(SMALL, layers=(dense, dataclasses.replace(moe, ffn_matrices=2)))
    gated, counts = parameters(SMALL), parameters(ungated)
    assert counts.dense_ffn == gated.dense_ffn  # the other layer still has its gate
    assert counts.experts == 2 * 4 * (2 + 6) and counts.shared_experts == 2 * 4 * 3
    assert counts.active_experts == 2 * 4 * 4
    assert gated.active - counts.active == 4 * (4 + 3)
    saved = 3 * 2 * 4 * (4 + 3)
    assert flops_per_token(SMALL, 6) - flops_per_token(ungated, 6) == saved
    assert flops_per_width(ungated) == 3 * 2 * 2 * 4
    both = dataclasses.replace(ungated, layers=(*ungated.layers, moe))
    assert flops_per_width(both) == 3 * 2 * 2.5 * 4
    measured = parameters(both, (3.0, 5.0))  # each layer's width at its own price
    assert measured.active_experts == 2 * 4 * 3 + 3 * 4 * 5
    without_moe = dataclasses.replace(SMALL, layers=(dense,))
    assert flops_per_width(without_moe) == flops_per_width(SMALL)


def test_experts_of_width_zero_lower_the_width_to_plan_with():
    """MoE++: two of 2 + 2 experts, half of which compute nothing, cost one expert."""
    layer = dataclasses.replace(SMALL.layers[1], widths=(4, 4, 0, 0), nominal_active=2.0)
    assert layer.nominal_active_width == 4
    assert parameters(dataclasses.replace(SMALL, layers=(layer,))).experts == 3 * 4 * 8


@pytest.mark.parametrize("widths", [(), (1.0, 2.0)])
def test_one_active_width_per_moe_layer_is_demanded(widths):
    with pytest.raises(ValueError, match=f"{len(widths)} active widths for 1 MoE layers"):
        parameters(SMALL, widths)
    with pytest.raises(ValueError, match="MoE layers"):
        flops_per_token(SMALL, 6, widths)


def test_a_dense_model_uses_all_of_itself():
    shape = llama(2, 8, 2, dense_width=16)
    assert parameters(shape, ()) == parameters(shape)
    assert parameters(shape).active == parameters(shape).total
    assert shape.layers[0].nominal_active_width == 0.0


def test_the_convention_is_stated():
    for word in ("without norm scales", "routers", "head", "training", "causal half"):
        assert word in CONVENTION
