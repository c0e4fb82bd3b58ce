"""Methods as knobs: read from JSON, refused in one line where they do not fit the model."""

import jax
import pytest
from tuned_models import UNEQUAL, model_config, planned

from moejax.config import ConfigError
from moejax.config.compose import build, to_plain
from moejax.experts import MoeConfig, WidthPlan, ZeroCompute
from moejax.finetune.leaves import flat
from moejax.finetune.methods import ESFT, LoRA, MultiLoRA, Partial
from moejax.models import Transformer
from moejax.routing.routers import TopK
from moejax.train.tuning import METHODS, count

LAYERS = model_config(num_layers=3, first_dense=1)
"""Layer 0 is dense; 5 experts in the others."""


def test_every_method_is_registered_and_survives_json():
    assert set(METHODS.names()) >= {"full", "partial", "esft", "lora", "multilora"}
    for method in (ESFT({"1": (3, 0)}, norms=True), MultiLoRA(2, modules=5), Partial(2)):
        plain = to_plain(method)
        assert build(METHODS.get(plain["name"]), plain) == method


@pytest.mark.parametrize(
    "method, message",
    [
        (ESFT({"1": (5,)}), "expert 5 is out of range of the layer's 5 experts; .* 4"),
        (ESFT({"0": (1,)}), "layer 0 of the model is dense; nearest MoE layer 1"),
        (ESFT({"3": (1,)}), r"experts\.3: the model has 3 layers, 0 to 2; nearest valid value 2"),
        (ESFT({"1": (2, 2)}), r"experts\.1: expert 2 is named twice"),
        (ESFT({"one": (2,)}), "'one' is not the number of a layer"),
        (ESFT({"01": (2,)}), "'01' is not the number of a layer"),
        (ESFT({"1": ()}), "no expert is chosen, and nothing else is trained"),
        (Partial(4), "top_layers=4: the model has 3 layers; nearest valid value 3"),
        (LoRA(targets=("routed", "router", "dense")), None),
    ],
)
def test_what_does_not_fit_the_model_is_refused_in_one_line(method, message):
    model = Transformer(LAYERS)
    if message is None:
        planned(method, model)
        return
    with pytest.raises(ConfigError, match=message) as refusal:
        planned(method, model)
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).startswith("config.finetune.method.")


def test_models_without_what_is_asked_for_refuse():
    dense = Transformer(model_config(moe=None, tied_embeddings=True))
    with pytest.raises(
        ConfigError, match="layer 1 of the model is dense; it has no experts at all"
    ):
        planned(ESFT({"1": (0,)}), dense)
    with pytest.raises(ConfigError, match="no matrix of 'shared'; it has attention, dense"):
        planned(LoRA(targets=("attention", "shared")), dense)
    with pytest.raises(ConfigError, match="the model has nothing of shared"):
        planned(ESFT(shared_experts=True), dense)
    with pytest.raises(ConfigError, match="the head of this model is its embedding"):
        planned(Partial(1, head=True), dense)


def test_experts_that_compute_nothing_cannot_be_trained():
    moe = MoeConfig(3, WidthPlan(mean=8), TopK(k=2), zero_compute=ZeroCompute(copy=1))
    with pytest.raises(ConfigError, match="expert 3 computes nothing and has no weights"):
        planned(ESFT({"0": (3,)}), Transformer(model_config(moe)))


@pytest.mark.parametrize(
    "role, parts",
    [
        ("shared_experts", ("/ffn/shared/",)),
        ("router", ("/ffn/router/",)),
        ("attention", ("/attention/",)),
        ("norms", ("norm/scale_D",)),
        ("dense", ("/ffn/gate_FD", "/ffn/up_FD", "/ffn/down_FD")),
        ("embeddings", ("embed/", "head/")),
    ],
)
def test_a_role_is_trained_whole_beside_the_experts(role, parts):
    model = Transformer(LAYERS)
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    tuning = planned(ESFT({"2": (1,)}, **{role: True}), model)
    trainable, frozen = jax.eval_shape(tuning.split, params, jax.random.key(0))
    found = {path: leaf for path, leaf in flat(trainable).items() if "/experts/" not in path}
    expected = {
        path: leaf for path, leaf in flat(params).items() if any(part in path for part in parts)
    }
    assert expected and found == expected
    # An array that is trained whole is not held a second time.
    assert not expected.keys() & flat(frozen).keys()
    experts = count(trainable) - count(found)
    assert experts == 3 * UNEQUAL.spec.widths[1] * LAYERS.d_model
