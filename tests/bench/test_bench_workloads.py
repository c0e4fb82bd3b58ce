"""What the benchmarks compute is what they say: copies, yardsticks, loads, routers."""

import sys
from types import SimpleNamespace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moejax.models.attention.projections import project, project_back
from moejax.routing import RouterInputs
from moejax.routing.routers import TopK, TopP
from tools.benchmarks import context, copies, one_hot, targets
from tools.benchmarks.gemm import size_of
from tools.benchmarks.layers import (
    LayerShape,
    dense_apply,
    layer_arrays,
    moe_apply,
    moe_program,
    tokens,
    unavailable,
)
from tools.benchmarks.suites import (
    SUITES,
    WITH_PEERS,
    gpu,
    hetero,
    lm_parts,
    lm_step,
    skew,
    suite_of,
    top_p,
)
from tools.benchmarks.targets import SUITES_WITH_TARGETS
from tools.benchmarks.timing import interleave

SHAPE = LayerShape(24, 16, 8, 4, 2)


@pytest.fixture
def layer():
    """`(y_TD, x_TD, arrays)` of a small layer by the oracle."""
    x_TD, _ = tokens(SHAPE)
    apply, params = moe_apply(SHAPE.d_model, SHAPE.config(TopK(k=2, init_std=1.0), "loop"))
    return np.asarray(apply(params, x_TD)), x_TD, layer_arrays(params)


def test_every_suite_is_there():
    assert {*SUITES_WITH_TARGETS, *WITH_PEERS} <= set(SUITES)
    assert all(callable(suite_of(name)) for name in SUITES)


# ---- copies of weights


def test_a_block_in_the_layout_of_transformers_computes_our_layer(layer):
    y_TD, x_TD, arrays = layer
    block = copies.hf_block(arrays)
    x_TD = np.asarray(x_TD)
    theirs = np.zeros_like(y_TD)
    for t, x_D in enumerate(x_TD):  # Mixtral's forward pass, token by token
        logit_E = block["gate.weight"] @ x_D
        prob_E = np.exp(logit_E) / np.exp(logit_E).sum()
        chosen = np.argsort(-prob_E)[: SHAPE.k]
        for e in chosen:
            gate, up = np.split(block["experts.gate_up_proj"][e] @ x_D, 2)
            hidden = gate / (1 + np.exp(-gate)) * up
            weight = prob_E[e] / prob_E[chosen].sum()
            theirs[t] += weight * (block["experts.down_proj"][e] @ hidden)
    assert copies.difference(y_TD, theirs) < 1e-5


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_a_language_model_is_copied_layer_by_layer(kind, rng):
    from moejax.experts import MoeConfig, WidthPlan
    from moejax.models import ModelConfig
    from moejax.models.attention import AttentionConfig
    from moejax.models.transformer import Transformer

    moe = MoeConfig(4, WidthPlan(mean=8), TopK(k=2)) if kind == "moe" else None
    attention = AttentionConfig(heads=2)
    model = Transformer(ModelConfig(32, 16, 3, 24, attention=attention, moe=moe))
    params, _ = model.init(jax.random.key(0))
    arrays = copies.lm_arrays(params)
    block = jax.tree.map(lambda leaf: leaf[2], params["segments"]["0"]["0"])
    x_BSD = jnp.asarray(rng.normal(size=(1, 5, 16)), jnp.float32)
    q_BSHd = project(x_BSD, block["attention"]["q_DHd"])
    flat = x_BSD @ arrays["blocks.2.q.weight"].T
    assert copies.difference(q_BSHd.reshape(flat.shape), flat) < 1e-6
    back = project_back(q_BSHd, block["attention"]["o_HdD"])
    assert copies.difference(back, flat @ arrays["blocks.2.o.weight"].T) < 1e-6
    assert arrays["head.weight"].shape == (32, 16)
    if kind == "dense":
        np.testing.assert_array_equal(arrays["blocks.2.ffn.down.weight"].T, block["ffn"]["down_FD"])
        assert arrays["blocks.2.ffn.gate.weight"].shape == (24, 16)
    else:
        assert arrays["blocks.2.ffn.experts.gate_up_proj"].shape == (4, 16, 16)
    count = sum(array.size for array in arrays.values())
    assert count == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_a_peer_that_differs_is_named():
    ours = np.array([1.0, 2.0])
    assert copies.mismatch({"output": (ours, ours + 1e-5)}) == ""
    assert copies.mismatch({"output": (ours, ours + 1e-3)}).endswith("output 5.0e-04")
    assert "gradient inf" in copies.mismatch({"gradient": (ours, ours[:1])})
    assert "output nan" in copies.mismatch({"output": (ours, ours * np.nan)})


def test_a_peer_that_rounds_may_choose_otherwise_for_some_rows():
    ours = np.ones((8, 2))
    theirs = ours.copy()
    theirs[:2] = 0.5
    assert "output" in copies.mismatch({"output": (ours, theirs)}, 0.01)
    assert copies.mismatch({"output": (ours, theirs)}, 0.01, 0.7) == ""
    theirs[2:4] = 0.5
    assert "output 5.0e-01" in copies.mismatch({"output": (ours, theirs)}, 0.01, 0.7)


class FakeTrainer:
    """A step without a model: its losses are all that matters."""

    params: ClassVar = {}
    temp_mib = 0.0

    def __init__(self, made):
        pass

    def step(self):
        return 2.0


@pytest.mark.parametrize("theirs", [2.0, 2.1])
def test_a_language_model_that_differs_is_named_for_every_back_end(theirs, monkeypatch):
    fake = SimpleNamespace(train_step=lambda *_: lambda: theirs)
    monkeypatch.setitem(sys.modules, "tools.benchmarks.torch_lm", fake)
    monkeypatch.setattr(lm_step, "Trainer", FakeTrainer)
    monkeypatch.setattr(lm_step, "lm_arrays", dict)
    for module in (lm_step, context):
        monkeypatch.setattr(module, "unavailable", lambda backend: "")
    work = lm_step.workload(context.Context("lm_step", ("native", "tiles"), targets_only=True))
    timings = interleave(work.candidates, rounds=1, warm_up=0, pause=0)
    rows = work.rows + [one.row("lm_step", timings) for one in work.comparisons]
    assert len(rows) == 5  # dense, and two of each back end
    lost = [(row["case"], row["backend"]) for row in rows if row["note"].startswith("mismatch")]
    whole = [(targets.LM_DENSE, "-"), (targets.LM_MOE, "native"), (targets.LM_MOE, "tiles")]
    assert lost == ([] if theirs == 2.0 else whole)
    torch_steps = [one.name for one in work.candidates if "torch" in one.name]
    assert len(torch_steps) == (2 if theirs == 2.0 else 0)  # dense and MoE, timed once each


# ---- yardsticks


def test_one_hot_dispatch_with_room_for_all_is_our_layer(layer):
    y_TD, x_TD, arrays = layer
    weights = jax.tree.map(jnp.asarray, arrays)
    roomy = one_hot.one_hot_moe(weights, x_TD, k=2, factor=2.0, group=8)
    assert copies.difference(y_TD, roomy) < 1e-5


def test_one_hot_dispatch_drops_what_does_not_fit(layer):
    _, x_TD, arrays = layer
    # All tokens want experts 0 and 1, which have room for 1.25 * 2 * 24 / 4 = 15 of 24.
    arrays["router"] = np.zeros_like(arrays["router"])
    weights = jax.tree.map(jnp.asarray, arrays)
    tight = np.asarray(one_hot.one_hot_moe(weights, x_TD, k=2))
    assert np.abs(tight[:15]).min(-1).max() > 0
    assert (tight[15:] == 0).all()


def test_the_dense_yardstick_has_the_flops_of_the_experts():
    _, params = dense_apply(SHAPE.d_model, SHAPE.active_width)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert SHAPE.flops == 3 * 2 * size * SHAPE.tokens


def test_a_square_product_stands_for_any_number_of_flops():
    assert size_of(2.0 * 2048**3) == 2048
    assert size_of(1.0) == 128
    shape = gpu.SHAPES[0]
    assert 2.0 * size_of(shape.flops) ** 3 == pytest.approx(shape.flops, rel=0.05)


def test_the_projections_are_twelve_products_to_the_compiler_too():
    program = lm_parts._projections(jnp.ones((64, 32)))
    assert program.call.cost_analysis()["flops"] == pytest.approx(12 * 2 * 64 * 32 * 32, rel=0.02)


def test_back_ends_are_seen_to_be_there_or_not():
    assert unavailable("tiles") == ""
    assert "no back end 'nativ'" in unavailable("nativ")


def test_equal_seeds_give_every_back_end_the_same_layer():
    ours = [
        moe_program(SHAPE.d_model, SHAPE.config(TopK(k=2), backend), *tokens(SHAPE)).run()[0]
        for backend in ("loop", "tiles")
    ]
    assert copies.difference(*ours) < 1e-5


# ---- loads and routers


@pytest.mark.parametrize("name", skew.WORKLOADS)
def test_a_steered_router_chooses_what_the_workload_asks_for(name):
    shape = LayerShape(64, 32, 8, 16, 2)
    made = skew.WORKLOADS[name](shape.tokens, shape.experts, shape.k)
    x_TD, _ = tokens(shape)
    for choice in made if isinstance(made, list) else [made]:
        assert all(len(set(one)) == shape.k for one in choice.tolist())
        params = {"w_DE": skew.identity_router(shape.d_model, shape.experts)}
        inputs = RouterInputs.of(shape.tokens, num_experts=shape.experts)
        routing, _ = TopK(k=2)(skew.steered(x_TD, choice, shape.experts), inputs, params, {})
        np.testing.assert_array_equal(routing.expert_TK, choice)


def test_the_loads_are_those_of_their_names():
    shape = skew.SHAPE

    def of(name):
        return skew.WORKLOADS[name](shape.tokens, shape.experts, shape.k)

    assert skew.imbalance(of("balanced"), shape.experts) == 1.0
    assert skew.imbalance(of("hot expert"), shape.experts) == 8.0
    assert 1.5 < skew.imbalance(of("ragged"), shape.experts) < 8.0
    assert len(np.unique(of("zero load"))) == shape.experts // 4
    assert len({choice[0, 0] for choice in of("rotating")}) == skew.SEQUENCE
    loads = [skew.imbalance(choice, shape.experts) for choice in of("burst")]
    assert loads == [1.0, 1.0, 1.0, 8.0]


def test_top_p_takes_two_experts_on_average():
    x_TD, _ = tokens(top_p.SHAPE)
    w_DE = 0.02 * jax.random.normal(jax.random.key(0), (top_p.SHAPE.d_model, top_p.SHAPE.experts))
    scale, mean = top_p.router_scale(x_TD, w_DE)
    assert mean == pytest.approx(2.0, abs=0.01)
    inputs = RouterInputs.of(len(x_TD), num_experts=top_p.SHAPE.experts)
    routing, _ = TopP(p=top_p.P)(x_TD, inputs, {"w_DE": scale * w_DE}, {})
    assert float(routing.active_T.max()) > 2  # it is not top-2 in disguise


def test_the_widths_are_uneven_and_their_use_is_measured():
    x_TD, _ = tokens(hetero.SHAPE)
    active = hetero.active_width(x_TD)
    narrow, wide = sorted(hetero.WIDTHS)[:2], sorted(hetero.WIDTHS)[-2:]
    assert sum(narrow) < active < sum(wide)


def test_the_gpu_suite_lowers_for_cuda():
    shape = LayerShape(256, 128, 64, 4, 2)
    x_TD, dy_TD = tokens(shape, dtype=gpu.DTYPE)
    apply, params = gpu.ours(shape, "ragged_dot")

    def step(params, x_TD, dy_TD):
        y_TD, pull_back = jax.vjp(apply, params, x_TD)
        return y_TD, pull_back(dy_TD)

    lowered = jax.jit(step).trace(params, x_TD, dy_TD).lower(lowering_platforms=("cuda",))
    assert "chlo.ragged_dot" in lowered.as_text()
    assert nnx.to_pure_dict(params)["experts"]["gate_NUD"].dtype == gpu.DTYPE
