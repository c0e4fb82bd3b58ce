"""Singular values of what a fine-tuning has added to each matrix."""

import jax
import numpy as np
import pytest
from tuned_models import UNEQUAL, model_config, planned, random_params

from moejax.finetune.leaves import flat, nested
from moejax.finetune.methods import ESFT, LoRA
from moejax.finetune.spectrum import difference, spectra, spectrum
from moejax.models import Transformer


def test_a_matrix_with_known_singular_values(rng):
    left, _ = np.linalg.qr(rng.standard_normal((7, 7)))
    right, _ = np.linalg.qr(rng.standard_normal((5, 5)))
    known = np.array([4.0, 3.0, 2.0, 1.0])
    found = spectrum(left[:, :4] * known @ right[:4])
    assert found.rank == 4
    assert found.norm == pytest.approx(30**0.5)
    np.testing.assert_allclose(found.values[:4], known / 30**0.5, rtol=1e-12)
    assert found.share(1) == pytest.approx(16 / 30)
    assert found.share(4) == pytest.approx(1.0)
    share = known / 10
    assert found.effective_rank == pytest.approx(np.exp(-(share * np.log(share)).sum()))


def test_equal_values_have_their_number_as_effective_rank():
    found = spectrum(np.eye(6) * 0.3)
    assert found.effective_rank == pytest.approx(6) and found.share(1) == pytest.approx(1 / 6)


def test_a_matrix_that_did_not_change_has_no_spectrum_and_nan_is_refused():
    assert spectrum(np.zeros((3, 2))) is None
    with pytest.raises(ValueError, match="finite matrix"):
        spectrum(np.full((2, 2), np.nan))


def test_lora_has_its_rank_in_every_matrix_of_every_layer_and_expert():
    model = Transformer(model_config())
    params, _ = random_params(model)
    tuning = planned(LoRA(3), model)
    factors, _ = jax.eval_shape(tuning.split, params, jax.random.key(0))
    random = np.random.default_rng(0)
    factors = jax.tree.map(lambda leaf: random.standard_normal(leaf.shape, np.float32), factors)
    found = spectra(model, params, jax.jit(tuning.deltas)(factors))
    assert found["format_version"] == 1
    # Two layers of 4 in attention, 3 shared, 1 router, 3 of each of 5 experts.
    assert len(found["matrices"]) == 2 * (4 + 3 + 1 + 15)
    assert {record["rank"] for record in found["matrices"]} == {3}
    assert {record["layer"] for record in found["matrices"]} == {0, 1}
    gates = {
        (r["layer"], r["expert"]): tuple(r["shape"])
        for r in found["matrices"]
        if r["path"].endswith("experts/gate_NUD")
    }
    assert gates == {
        (layer, expert): (width, model.config.d_model)
        for layer in range(2)
        for expert, width in enumerate(UNEQUAL.spec.widths)
    }
    # The difference of the merged model says the same, up to its rounding.
    merged = jax.jit(tuning.assemble)(factors, params)
    again = spectra(model, params, difference(params, merged))
    for one, other in zip(found["matrices"], again["matrices"], strict=True):
        assert one["path"] == other["path"] and one["expert"] == other["expert"]
        np.testing.assert_allclose(
            one["singular_values"][:3], other["singular_values"][:3], atol=1e-5
        )


def test_the_spectrum_of_an_output_projection_is_that_of_its_matrix():
    """Its input lies along two axes."""
    model = Transformer(model_config())
    params, _ = random_params(model)
    path = "segments/0/0/attention/o_HdD"
    delta = np.random.default_rng(0).standard_normal(flat(params)[path].shape)
    found = spectra(model, params, {path: delta})["matrices"]
    for layer in range(2):
        values = np.linalg.svd(delta[layer].reshape(-1, model.config.d_model), compute_uv=False)
        np.testing.assert_allclose(
            found[layer]["singular_values"], values / np.linalg.norm(values), atol=1e-7
        )


def test_experts_that_were_not_selected_have_no_spectrum():
    model = Transformer(model_config())
    params, _ = random_params(model)
    tuning = planned(ESFT({"0": (2,), "1": (0, 4)}), model)
    trainable, frozen = tuning.split(params, jax.random.key(0))
    moved = nested({path: leaf + 1 for path, leaf in flat(trainable).items()})
    deltas = difference(params, tuning.assemble(moved, frozen))
    found = spectra(model, params, deltas)["matrices"]
    assert {(r["layer"], r["expert"]) for r in found} == {(0, 2), (1, 0), (1, 4)}
    # Everything moved by one: rank 1.
    assert len(found) == 9 and all(r["share_top1"] == pytest.approx(1) for r in found)
