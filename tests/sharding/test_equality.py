"""Every kind of model on every mesh by every exchange equals the one on one device."""

import mesh_battery
import pytest


@pytest.mark.parametrize("cell", mesh_battery.covering(), ids=", ".join)
def test_a_mesh_changes_nothing(cell):
    """Every kind and every mesh by every exchange; the slow tests have every triple."""
    mesh_battery.check(*cell)


@pytest.mark.slow
@pytest.mark.parametrize("cell", mesh_battery.pairwise(), ids=", ".join)
def test_no_mesh_changes_any_kind(cell):
    """Every kind on every mesh, and every pair with an exchange."""
    mesh_battery.check(*cell)


@pytest.mark.all
@pytest.mark.parametrize("cell", mesh_battery.cells(), ids=", ".join)
def test_no_combination_changes_anything(cell):
    mesh_battery.check(*cell)
