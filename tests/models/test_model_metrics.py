"""What a model says about itself: the arrays and numbers of a run directory."""

import math

import jax
import numpy as np
import pytest
from model_samples import EQUAL, KINDS, UNEQUAL, make, packed, random_params

from moejax.config import counts
from moejax.models.metrics import EMPTY_SLOT, moe_layers, width_table
from moejax.routing.ledger import CAUSES

LENGTH = 9
TOP_P = KINDS["hetero_top_p"]
LAYERS = ("dense", "moe", "wide", "moe", "wide")
MOE_LAYERS = [1, 2, 3, 4]
WIDTHS = {"moe": (8, 8, 8, 8), "wide": (4, 4, 8, 8, 12, 12)}


@pytest.fixture(scope="module")
def model():
    return make(EQUAL, moe_variants={"wide": TOP_P}, layers=LAYERS, num_layers=5)


@pytest.fixture(scope="module")
def batch(rows=((4, 5), (6,), ())):
    rng = np.random.default_rng(3)
    batch = packed(rows, LENGTH)
    shape = batch["tokens"].shape
    for name, high, dtype in (
        ("token_class", 5, np.uint8),
        ("frequency_rank", 300, np.int32),
        ("domain", 3, np.uint8),
        ("language", 2, np.uint8),
    ):
        batch[name] = rng.integers(0, high, shape).astype(dtype)
    return batch


@pytest.fixture(scope="module")
def results(model, batch):
    params, state = random_params(model)
    inputs = {
        name: batch[name] for name in ("tokens", "targets", "segment_ids", "positions", "loss_mask")
    }

    @jax.jit
    def evaluate(batch):
        denominators = model.denominators(batch)
        loss, out = model.loss(
            params, state, batch, None, denominators=denominators, train=False, trace=True
        )
        return loss, out, model.summarise(out)

    return jax.device_get(evaluate(inputs))


@pytest.fixture(scope="module")
def routing(model, results):
    return model.host_routing(results[2])


@pytest.fixture(scope="module")
def trace(model, results, batch):
    return model.host_trace(results[1]["trace"], batch)


TOKENS = 15


def test_the_summary_is_what_the_step_computed(results):
    loss, out, summary = results
    assert summary["loss"] == pytest.approx(out["nll"] / out["targets"], rel=1e-6)
    assert summary["total_loss"] == pytest.approx(loss, rel=1e-6)
    assert out["targets"] == 3 + 4 + 5
    assert {name for name in summary if name.startswith("aux/")} == {
        "aux/load_balance",
        "aux/parameter_penalty",
    }
    names = {name.removeprefix("routing/") for name in summary if name.startswith("routing/")}
    assert names == {
        "load_max_over_mean", "load_cv", "dead_fraction", "entropy", "active_experts",
        "active_width", *(f"dropped/{cause}" for cause in CAUSES),
    }  # fmt: skip
    scalars = {name: value for name, value in summary.items() if name != "_routing"}
    for value in scalars.values():
        assert value.dtype == np.float32 and value.shape == () and np.isfinite(value)


def test_routing_arrays_have_the_shapes_of_a_run_directory(routing):
    layers, experts = len(MOE_LAYERS), 6
    np.testing.assert_array_equal(routing["layers_L"], MOE_LAYERS)
    assert routing["layers_L"].dtype == np.int32
    for name, dtype in (("width_LE", np.int32), ("count_LE", np.int64), ("prob_LE", np.float64)):
        assert routing[name].shape == (layers, experts) and routing[name].dtype == dtype
    for name in ("tokens_L", "requested_L", "kept_L", *(f"dropped_{cause}_L" for cause in CAUSES)):
        assert routing[name].shape == (layers,) and routing[name].dtype == np.int64
    for name in ("active_L", "active_width_L", "entropy_L"):
        assert routing[name].shape == (layers,) and routing[name].dtype == np.float64


def test_layers_stand_in_model_order_and_experts_are_padded(model, routing):
    assert moe_layers(model) == MOE_LAYERS
    np.testing.assert_array_equal(routing["width_LE"], width_table(model))
    for row, layer in enumerate(MOE_LAYERS):
        widths = WIDTHS[LAYERS[layer]]
        missing = 6 - len(widths)
        assert tuple(routing["width_LE"][row]) == widths + (-1,) * missing
        assert not routing["count_LE"][row, len(widths) :].any()
        assert np.isnan(routing["prob_LE"][row, len(widths) :]).all()
        np.testing.assert_allclose(np.nansum(routing["prob_LE"][row]), 1, rtol=1e-5)
        np.testing.assert_allclose(
            routing["active_width_L"][row],
            routing["count_LE"][row, : len(widths)] @ np.asarray(widths) / TOKENS,
        )


def test_the_books_balance_and_padding_is_not_in_them(results, routing):
    assert (routing["tokens_L"] == TOKENS).all()
    np.testing.assert_array_equal(routing["count_LE"].sum(1), routing["kept_L"])
    dropped = sum(routing[f"dropped_{cause}_L"] for cause in CAUSES)
    np.testing.assert_array_equal(routing["kept_L"] + dropped, routing["requested_L"])
    for row, layer in enumerate(MOE_LAYERS):
        if LAYERS[layer] == "moe":
            assert routing["kept_L"][row] == 2 * TOKENS
        else:
            assert TOKENS <= routing["kept_L"][row] <= 4 * TOKENS
    np.testing.assert_allclose(routing["active_L"], routing["kept_L"] / TOKENS)
    summary = results[2]
    for name, array in (("active_experts", "active_L"), ("active_width", "active_width_L")):
        assert summary[f"routing/{name}"] == pytest.approx(routing[array].mean(), rel=1e-5)
    assert summary["routing/entropy"] == pytest.approx(routing["entropy_L"].mean(), rel=1e-5)
    limits = [math.log(len(WIDTHS[LAYERS[layer]])) for layer in MOE_LAYERS]
    assert ((routing["entropy_L"] > 0) & (routing["entropy_L"] < limits)).all()


def test_the_trace_holds_the_valid_tokens_and_agrees_with_the_counts(routing, trace, batch):
    slots = 4  # k_max of the top-p layers; top-2 layers leave two empty
    assert trace["expert_LTK"].shape == (4, TOKENS, slots)
    assert trace["expert_LTK"].dtype == np.uint16
    filled = trace["expert_LTK"] != EMPTY_SLOT
    np.testing.assert_array_equal(trace["active_LT"], filled.sum(-1))
    np.testing.assert_allclose(trace["active_LT"].mean(1), routing["active_L"])
    np.testing.assert_allclose(trace["width_LT"].mean(1), routing["active_width_L"])
    for row in range(4):
        counted = np.bincount(trace["expert_LTK"][row][filled[row]], minlength=6)
        np.testing.assert_array_equal(counted, routing["count_LE"][row])
        for token in range(TOKENS):
            experts = trace["expert_LTK"][row, token][filled[row, token]]
            assert len(set(experts)) == len(experts)
            widths = WIDTHS[LAYERS[MOE_LAYERS[row]]]
            assert trace["width_LT"][row, token] == sum(widths[e] for e in experts)
    for name in ("layers_L", "width_LE"):
        np.testing.assert_array_equal(trace[name], routing[name])


def test_the_trace_carries_what_the_batch_says_about_its_tokens(results, trace, batch):
    valid = batch["segment_ids"] > 0
    for name, source, dtype in (
        ("token_T", "tokens", np.int32),
        ("target_T", "targets", np.int32),
        ("class_T", "token_class", np.uint8),
        ("frequency_rank_T", "frequency_rank", np.int32),
        ("domain_T", "domain", np.uint8),
        ("language_T", "language", np.uint8),
        ("position_T", "positions", np.int32),
    ):
        assert trace[name].dtype == dtype
        np.testing.assert_array_equal(trace[name], batch[source][valid])
    scored = batch["loss_mask"][valid] > 0
    assert trace["loss_T"].dtype == np.float32
    np.testing.assert_array_equal(np.isnan(trace["loss_T"]), ~scored)
    np.testing.assert_allclose(np.nansum(trace["loss_T"]), results[1]["nll"], rtol=1e-5)


def test_a_dense_model_has_empty_arrays(batch):
    model = make()
    out = {"nll": 24.0, "targets": 12.0, "aux": {}, "aux_raw": {}, "layers": ()}
    summary = model.summarise(out)
    assert set(summary) == {"loss", "total_loss", "_routing"}
    assert float(summary["loss"]) == 2.0
    routing = model.host_routing(summary)
    assert routing["count_LE"].shape == (0, 0)
    assert all(array.shape[0] == 0 for array in routing.values())
    nll_BS = np.arange(27.0).reshape(3, LENGTH)
    trace = model.host_trace({"expert_LTK": (), "nll_BS": nll_BS}, batch)
    assert trace["expert_LTK"].shape == (0, TOKENS, 0)
    assert trace["width_LT"].shape == trace["active_LT"].shape == (0, TOKENS)
    assert trace["loss_T"].shape == (TOKENS,)


def test_summaries_of_steps_add(model, results):
    _, out, summary = results
    out = {name: out[name] for name in out if name != "trace"}
    twice = model.summarise(jax.tree.map(lambda leaf: leaf + leaf, out))
    np.testing.assert_allclose(twice["loss"], summary["loss"], rtol=1e-6)
    for name in summary:
        if name.startswith("routing/"):
            np.testing.assert_allclose(twice[name], summary[name], rtol=1e-5)
    routing = model.host_routing(twice)
    assert (routing["tokens_L"] == 2 * TOKENS).all()
    np.testing.assert_allclose(routing["active_L"], model.host_routing(summary)["active_L"])


def test_describe_is_what_model_json_says(model):
    described = model.describe(seq_len=LENGTH)
    shape = model.shape()
    counted = counts.parameters(shape)
    assert described["convention"] == counts.CONVENTION
    assert described["total_parameters"] == counted.total
    assert described["embedding_parameters"] == 2 * 31 * 16
    assert described["active_parameters"] - described["active_non_embedding_parameters"] == 992
    assert described["trained_parameters"] == counted.everything
    assert described["flops_per_token"] == counts.flops_per_token(shape, LENGTH)
    assert described["flops_per_width"] == 3 * 2 * 3 * 16
    assert [layer["index"] for layer in described["layers"]] == list(range(5))
    for layer, name in zip(described["layers"], LAYERS, strict=True):
        assert layer["kind"] == ("dense" if name == "dense" else "moe")
        assert tuple(layer["widths"]) == WIDTHS.get(name, ())
        assert layer["experts"] == len(layer["widths"])
        assert layer["router"] == {"dense": None, "moe": "top_k", "wide": "top_p"}[name]
        assert layer["dense_width"] == (24 if name == "dense" else 0)
        assert layer["shared_width"] == (4 if name == "wide" else 0)
        if layer["widths"]:
            mean = sum(layer["widths"]) / len(layer["widths"])
            assert layer["nominal_active_width"] == layer["nominal_active_experts"] * mean
    assert UNEQUAL.spec.widths == WIDTHS["wide"]
