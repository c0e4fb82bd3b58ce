"""Where expert units live: nothing lost, nothing twice, little padding."""

import numpy as np
import pytest

from moejax.config import ConfigError
from moejax.config.widths import WidthPlan
from moejax.experts.exchange.placement import PADDING, placement
from moejax.experts.exchange.sharded import Parallel
from moejax.experts.spec import ExpertsSpec
from moejax.sharding import MeshConfig, make_mesh

ARITHMETIC = WidthPlan("arithmetic", mean=16, unit=1).widths(8)
LAYERS = {
    "uniform": (4,) * 8,
    "sixty-three": (2,) * 63,
    "arithmetic": ARITHMETIC,
    "one giant": (64, 1, 1, 1, 1, 1, 1, 1),
    "zero experts": (4, 4, 4, 4, 0, 0),
}


@pytest.mark.parametrize("devices, tensor", [(1, 1), (2, 1), (4, 2), (8, 1), (8, 2)])
@pytest.mark.parametrize("layer", LAYERS)
def test_every_unit_is_placed_once_and_comes_back(layer, devices, tensor):
    units = LAYERS[layer]
    placed = placement(units, devices, tensor)
    real = [unit for unit in placed.source if unit != PADDING]
    assert sorted(real) == list(range(sum(units)))
    assert len(placed.source) == devices * tensor * sum(placed.slot_units)
    weight = np.arange(1.0, 1 + 3 * sum(units)).reshape(sum(units), 3)
    stored = np.asarray(placed.place(weight, 0))
    np.testing.assert_array_equal(placed.restore(stored, 0), weight)
    padding = np.asarray(placed.source) == PADDING
    assert not stored[padding].any() and stored[~padding].all()


@pytest.mark.parametrize("devices, tensor", [(2, 1), (4, 2), (8, 2)])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_slot_holds_units_of_the_expert_that_the_tables_say(layer, devices, tensor):
    units = LAYERS[layer]
    placed = placement(units, devices, tensor)
    owner = np.repeat(np.arange(len(units)), units)
    table = np.asarray(placed.source).reshape(devices, tensor, -1)
    bounds = np.cumsum((0, *placed.slot_units))
    found = dict.fromkeys(range(len(units)), 0)
    device_EM, slot_EM = placed.tables()
    for expert in range(len(units)):
        for device, slot in zip(device_EM[expert], slot_EM[expert], strict=True):
            if device == devices:
                continue
            held = table[device, :, bounds[slot] : bounds[slot + 1]]
            held = held[held != PADDING]
            assert (owner[held] == expert).all()
            found[expert] += held.size
    assert tuple(found.values()) == units
    assert (device_EM[-1] == devices).all()  # the sentinel has no pieces


def test_equal_experts_stay_where_they_are():
    assert placement((4,) * 8, 4, 2).pieces[3] == ((1, 1),)
    assert placement((4,) * 8, 4).is_config_order
    assert placement(ARITHMETIC, 1).is_config_order is False  # widest first


def test_experts_are_not_cut_finer_than_it_is_worth():
    """A piece more is a device more to send every token to."""
    assert placement(ARITHMETIC, 2).mean_pieces == 1
    assert placement(ARITHMETIC, 8).mean_pieces < 2


def test_padding_is_little():
    """HMoE's widths over 8 devices; 63 experts over 8; one that is wider than a fair share."""
    assert placement(ARITHMETIC, 2).max_over_mean <= 1.07
    assert placement(ARITHMETIC, 8).max_over_mean <= 1.2
    assert placement((2,) * 63, 8).max_over_mean == 64 / 63
    giant = placement((64, 1, 1, 1, 1, 1, 1, 1), 8)
    assert giant.max_pieces == 8 and giant.max_over_mean <= 1.3


def test_an_expert_of_one_unit_cannot_be_split():
    parallel = Parallel(make_mesh(MeshConfig(data=1, fsdp=1, tensor=2)))
    with pytest.raises(ConfigError) as error:
        parallel.placement(ExpertsSpec((16,) * 4, unit=16))
    assert str(error.value) == (
        "config.mesh.tensor=2: an expert of 16 hidden units is 1 storage unit(s) of 16 and cannot "
        "be split; nearest valid value config.model.moe.widths.unit=8"
    )
