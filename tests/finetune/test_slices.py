"""What is not trained keeps every bit, whatever the optimiser does; what is trained learns exactly
as it would if everything were trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tuned_models import (
    EQUAL,
    UNEQUAL,
    Bowl,
    eight_devices,
    loss_of_layers,
    model_config,
    planned,
    random_params,
    trained,
)

from moejax.finetune.leaves import flat
from moejax.finetune.methods import ESFT, Full, LoRA, Partial
from moejax.finetune.slices import Slices, sliced_name
from moejax.models import Transformer

SPEC = UNEQUAL.spec


def random_selection(rng, moe=UNEQUAL):
    """Experts of both MoE layers, unequally many; at least one."""
    experts = moe.num_experts
    counts = rng.integers(0, experts, 2)
    counts[rng.integers(2)] += 1
    return {
        str(layer): tuple(int(e) for e in rng.permutation(experts)[:count])
        for layer, count in zip((0, 1), counts, strict=True)
        if count
    }


def frozen_mask(shape, method, spec):
    """bool of an array's first two axes: what an ESFT run must not touch, from the config alone."""
    mask = np.ones(shape[:2], bool)
    for layer, experts in method.experts.items():
        for expert in experts:
            start = spec.starts[expert]
            mask[int(layer), start : start + spec.units[expert]] = False
    return mask


def check_frozen(method, spec, before, after):
    """Bits of all that is frozen; and that every trained unit has moved."""
    old, new = flat(before), flat(after)
    assert old.keys() == new.keys()
    for path, leaf in old.items():
        if "/experts/" not in path:
            assert new[path].tobytes() == leaf.tobytes(), path
            continue
        mask = frozen_mask(leaf.shape, method, spec)
        assert new[path][mask].tobytes() == leaf[mask].tobytes(), path
        moved = (new[path] != leaf).any(axis=(2, 3))
        assert moved[~mask].all(), path


@pytest.mark.parametrize("draw", range(4))
@pytest.mark.parametrize("devices", [1, 8])
def test_random_selections_leave_every_other_bit_alone(draw, devices):
    """Under AdamW with decay, clipping and momentum; on eight devices experts of different widths
    move and are padded."""
    moe = (UNEQUAL, EQUAL)[draw % 2]
    config = model_config(moe)
    method = ESFT(random_selection(np.random.default_rng(draw), moe))
    params, router_state = random_params(Transformer(config), seed=draw)
    parallel = eight_devices() if devices == 8 else None
    before, after, _ = trained(method, config, params, router_state, parallel=parallel, kind=Bowl)
    for path, leaf in flat(params).items():
        assert flat(before)[path].tobytes() == np.asarray(leaf).tobytes(), path
    check_frozen(method, moe.spec, before, after)


@pytest.mark.parametrize("moe", [pytest.param(EQUAL, marks=pytest.mark.slow), UNEQUAL])
def test_a_mesh_trains_the_same_slices_to_the_same_values(moe):
    config = model_config(moe)
    method = ESFT(random_selection(np.random.default_rng(7), moe))
    params, router_state = random_params(Transformer(config), seed=3)
    alone = trained(method, config, params, router_state)
    spread = trained(method, config, params, router_state, parallel=eight_devices())
    for before, after, _ in (alone, spread):
        check_frozen(method, moe.spec, before, after)
    for path, leaf in flat(alone[2].trainable).items():
        np.testing.assert_allclose(flat(spread[2].trainable)[path], leaf, atol=2e-4, err_msg=path)


def test_negative_zeros_and_denormals_of_the_base_survive():
    config = model_config()
    params, router_state = random_params(Transformer(config))
    params = jax.tree.map(np.array, params)
    for leaf in jax.tree.leaves(params):
        leaf.reshape(-1)[::3], leaf.reshape(-1)[1::3] = -0.0, 1e-42
    method = ESFT({"1": (2,)})
    before, after, _ = trained(method, config, params, router_state, steps=1, kind=Bowl)
    check_frozen(method, SPEC, before, after)


def test_optimizer_state_exists_for_trained_slices_only():
    config = model_config()
    method = ESFT({"0": (1, 0), "1": (4,)})
    params, router_state = random_params(Transformer(config))
    _, _, state = trained(method, config, params, router_state, steps=1, kind=Bowl)
    units = sum(SPEC.units[e] for e in (1, 0, 4))
    names = ("gate", "up", "down")
    shapes = {
        f"segments/0/0/ffn/experts/{name}_XUD": (units, SPEC.unit, config.d_model) for name in names
    }
    assert {path: leaf.shape for path, leaf in flat(state.trainable).items()} == shapes
    moments = [leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    # Two moments of Adam and the momentum behind it.
    assert sum(moments) == 3 * len(names) * units * SPEC.unit * config.d_model


def test_a_gradient_of_slices_is_that_of_the_whole_array_in_its_rows():
    """float64, 1e-10, through both layers: of chosen experts, and of roles that are whole."""
    with jax.enable_x64(True):
        model = Transformer(model_config())
        params, state = random_params(model, dtype=jnp.float64)
        method = ESFT({"0": (2, 1), "1": (0,)}, attention=True, shared_experts=True)
        tuning = planned(method, model)
        trainable, frozen = tuning.split(params, jax.random.key(0))

        def dense(params):
            return loss_of_layers(model, params, state)

        def sliced(trainable, frozen):
            return dense(tuning.assemble(trainable, frozen))

        whole = flat(jax.jit(jax.grad(dense))(params))
        found = flat(jax.jit(jax.grad(sliced))(trainable, frozen))
        assert {tuning.trained_path(path) for path in tuning.chosen} == found.keys()
        for path, rows in tuning.chosen.items():
            own = found[tuning.trained_path(path)]
            assert own.dtype == jnp.float64
            np.testing.assert_allclose(own, whole[path][rows], rtol=0, atol=1e-10, err_msg=path)
            assert (np.abs(own).max(axis=tuple(range(1, own.ndim))) > 1e-6).all(), path


def test_slices_are_the_same_arrays_on_any_mesh():
    config = model_config()
    params, router_state = random_params(Transformer(config))
    method = ESFT({"0": (2, 0), "1": (1, 4)}, norms=True)
    alone = trained(method, config, params, router_state, steps=0, kind=Bowl)
    spread = trained(
        method, config, params, router_state, steps=0, kind=Bowl, parallel=eight_devices()
    )
    want, got = flat(alone[2].trainable), flat(spread[2].trainable)
    assert want.keys() == got.keys()
    for path, leaf in want.items():
        assert leaf.tobytes() == got[path].tobytes(), path


def test_everything_trained_is_the_tree_of_pretraining():
    model = Transformer(model_config())
    params, _ = random_params(model)
    trainable, frozen = planned(Full(), model).split(params, jax.random.key(0))
    assert frozen == {}
    assert jax.tree.structure(trainable) == jax.tree.structure(params)


@pytest.mark.parametrize("top", [1, 2, 3])
def test_partial_trains_the_last_layers_and_nothing_else(top):
    """Of a dense layer and two MoE layers that are stacked."""
    config = model_config(num_layers=3, first_dense=1)
    params, router_state = random_params(Transformer(config))
    before, after, _ = trained(Partial(top), config, params, router_state, steps=1, kind=Bowl)
    for path, leaf in flat(before).items():
        same = [a.tobytes() == b.tobytes() for a, b in zip(flat(after)[path], leaf, strict=True)]
        layers = {"segments/0": [0], "segments/1": [1, 2]}.get("/".join(path.split("/")[:2]))
        wanted = [True] * len(same) if layers is None else [n < 3 - top for n in layers]
        assert same == wanted, path


@pytest.mark.parametrize(
    "name, ndim, indexed, expected",
    [
        ("gate_NUD", 4, 2, "gate_XUD"),
        ("gate_NUD", 4, 1, "gate_NUD"),
        ("q_DHd", 4, 1, "q_DHd"),
        ("table_VD", 2, 1, "table_XD"),
        ("w_DE", 3, 0, "w_DE"),
    ],
)
def test_names_of_slices_say_what_their_axes_are(name, ndim, indexed, expected):
    assert sliced_name(name, ndim, indexed) == expected


@pytest.mark.parametrize(
    "chosen, message",
    [
        ({"a_DE": (np.array([3]),)}, "out of range"),
        ({"a_DE": (np.array([0, 0]), np.array([1, 1]))}, "twice"),
        ({"a_DE": (np.array([0, 1]), np.array([1]))}, "do not name"),
        ({"b_DE": ()}, "no such array"),
    ],
)
def test_slices_that_an_array_does_not_have_are_refused(chosen, message):
    template = {"a_DE": jax.ShapeDtypeStruct((3, 2), jnp.float32)}
    with pytest.raises(ValueError, match=message):
        Slices(template, chosen)


def test_state_of_routers_moves_only_where_all_are_trained():
    model = Transformer(model_config())
    assert planned(Full(), model).routes
    assert planned(Partial(2), model).routes
    assert not planned(Partial(1), model).routes
    assert not planned(ESFT({"0": (0,)}), model).routes
    assert planned(ESFT({"0": (0,)}, router=True), model).routes
    assert planned(LoRA(2), model).routes
    assert not planned(LoRA(2, targets=("attention",)), model).routes
