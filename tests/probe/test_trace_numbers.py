"""What the numbers of a trace must add up to, for every kind of layer."""

from __future__ import annotations

import numpy as np
import probe_runs
import pytest

from moejax.analysis.traces import EMPTY_SLOT, Trace
from moejax.analysis.traces import trace as trace_module
from moejax.models import metrics
from moejax.probe import OpenedRun
from moejax.probe.observe import NEED_P, distribution, observer
from moejax.probe.program import make_pass, predictions
from moejax.probe.rows import validation_rows
from moejax.probe.tracing import trace


def traced(trained: OpenedRun, layers: tuple[str, ...]) -> Trace:
    run, restored = probe_runs.untrained(trained, layers)
    rows = validation_rows(trained.dataset, 4, run.experiment.data.seq_len, 4096)
    return trace(run, restored, rows, make_pass(run.model, observer(probs=True)))


@pytest.fixture(scope="module")
def made(trained: OpenedRun) -> Trace:
    """Of a dense layer, then top-p of unequal experts with a shared one, hash, expert choice, and a
    sigmoid router under a capacity."""
    return traced(trained, probe_runs.LAYERS)


def row_of(name: str) -> int:
    """The row of a kind of layer among the MoE layers: the first layer of the model is dense."""
    return probe_runs.LAYERS.index(name) - 1


def test_layers_stand_in_the_order_of_the_model(made: Trace) -> None:
    assert made.layers_L.tolist() == [1, 2, 3, 4] and made.step == 7
    assert made.width_LE[row_of("unequal")].tolist() == [4, 4, 8, 8, 12, 12]
    assert made.width_LE[row_of("hash")].tolist() == [8, 8, 8, 8, -1, -1]


def test_weights_add_up_to_what_each_router_declares(made: Trace) -> None:
    weight_LTK = made.weight_LTK
    assert weight_LTK is not None
    assert (weight_LTK[~made.filled_LTK] == 0).all()
    for name, moe in probe_runs.VARIANTS.items():
        sums_T = weight_LTK[row_of(name)].sum(-1)
        active_T = made.filled_LTK[row_of(name)].any(-1)
        low, high = moe.router.weight_sum()
        assert sums_T.max() <= high + 1e-6, name
        if name != "tight":  # a capacity leaves the weights of what is left as they were
            assert sums_T[active_T].min() >= low - 1e-6, name
    dropped_T = ~made.filled_LTK[row_of("tight"), :, :2].all(-1)
    assert 0.3 < dropped_T.mean() < 1, "half of the assignments find room"


def test_weights_stand_beside_their_experts(made: Trace) -> None:
    """Top-p's are probabilities, divided by the sum over the chosen; expert choice's are raw."""
    assert made.probs_LTE is not None and made.weight_LTK is not None
    for name in ("unequal", "choice"):
        row = row_of(name)
        sizes = set()
        for token in range(made.num_tokens):
            chosen = [int(e) for e in made.expert_LTK[row, token] if e != EMPTY_SLOT]
            probs = made.probs_LTE[row, token, chosen].astype(float)
            wanted = probs / probs.sum() if name == "unequal" else probs
            got = made.weight_LTK[row, token, : len(chosen)]
            np.testing.assert_allclose(got, wanted, rtol=4e-3, atol=1e-4)
            assert (np.diff(got) <= 1e-3).all()  # in order of preference
            sizes.add(len(chosen))
        assert len(sizes) > 1


def slow_statistics(probs_E: np.ndarray) -> tuple[float, float, float, list[float]]:
    """Entropy, largest, margin and need of one distribution."""
    if sum(probs_E) <= 0:
        return np.nan, np.nan, np.nan, [np.nan] * len(NEED_P)
    entropy = -sum(p * np.log(p) for p in probs_E if p > 0)
    best = sorted(probs_E, reverse=True)
    need = []
    for wanted in NEED_P:
        count, reached = 0, 0.0
        while reached < wanted - 1e-6 and count < len(best):
            reached += best[count]
            count += 1
        need.append(float(count))
    return entropy, best[0], best[0] - (best[1] if len(best) > 1 else 0.0), need


@pytest.mark.parametrize("experts", [1, 2, 7])
def test_statistics_of_random_distributions(experts: int, rng: np.random.Generator) -> None:
    raw_TE = rng.exponential(size=(40, experts)) ** 3
    raw_TE[0] = 1.0  # all equal
    raw_TE[1] = np.eye(experts)[0]  # one takes all
    raw_TE[2] = 0.0  # none
    raw_TE[3, : experts // 2] = 0.0
    probs_TE = (raw_TE / np.maximum(raw_TE.sum(-1, keepdims=True), 1e-30)).astype(np.float32)
    found = {name: np.asarray(array) for name, array in distribution(probs_TE).items()}
    for token, probs_E in enumerate(probs_TE.astype(np.float64)):
        entropy, top, margin, need = slow_statistics(probs_E)
        np.testing.assert_allclose(found["entropy_T"][token], entropy, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["top1_T"][token], top, rtol=1e-6)
        np.testing.assert_allclose(found["margin_T"][token], margin, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found["need_TQ"][token], need)


def test_statistics_are_those_of_the_probabilities(made: Trace) -> None:
    entropy_LT, top1_LT, margin_LT = made.entropy_LT, made.top1_LT, made.margin_LT
    need_LTQ, probs_LTE = made.need_LTQ, made.probs_LTE
    assert entropy_LT is not None and top1_LT is not None and margin_LT is not None
    assert need_LTQ is not None and probs_LTE is not None
    np.testing.assert_array_equal(made.need_p_Q, np.float32(NEED_P))
    for name in ("unequal", "choice", "tight"):
        row = row_of(name)
        experts = len(probe_runs.VARIANTS[name].spec.widths)
        assert (probs_LTE[row, :, experts:] == 0).all()
        same = 0
        for token in range(made.num_tokens):
            probs_E = probs_LTE[row, token, :experts].astype(np.float64)
            entropy, top, margin, need = slow_statistics(probs_E)
            got = [a[row, token] for a in (entropy_LT, top1_LT, margin_LT)]
            np.testing.assert_allclose(got, [entropy, top, margin], rtol=3e-3, atol=2e-3)
            same += (need_LTQ[row, token] == need).all()
        assert same > 0.98 * made.num_tokens  # these are rounded: a few are on the other side
    for array in (entropy_LT, top1_LT, margin_LT, need_LTQ, probs_LTE):
        assert np.isnan(array[row_of("hash")]).all()


@pytest.mark.parametrize("chunk", [0, 1, 3, 4, 9])
def test_a_prediction_is_the_id_with_the_largest_logit(
    chunk: int, rng: np.random.Generator
) -> None:
    x_BSD = rng.standard_normal((2, 7, 5)).astype(np.float32)
    table_VD = rng.standard_normal((11, 5)).astype(np.float32)
    got = predictions(x_BSD, table_VD, chunk=chunk, logits_dtype=np.float32)
    np.testing.assert_array_equal(got, (x_BSD @ table_VD.T).argmax(-1))


def test_a_dense_model_has_a_trace_without_layers(trained: OpenedRun, made: Trace) -> None:
    dense = traced(trained, ("dense",))
    assert dense.expert_LTK.shape == (0, made.num_tokens, 0) and dense.num_experts == 0
    assert dense.probs_LTE is None
    assert dense.loss_T is not None and np.isfinite(dense.loss_T).any()
    np.testing.assert_array_equal(dense.token_T, made.token_T)


def test_an_empty_slot_looks_the_same_to_writer_and_reader() -> None:
    assert metrics.EMPTY_SLOT == trace_module.EMPTY_SLOT
