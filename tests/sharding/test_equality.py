"""Every kind of model on every mesh by every exchange equals the one on one device."""

import jax
import mesh_battery
import numpy as np
import pytest

from moejax.models import Transformer
from moejax.sharding import tree_shardings


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


@pytest.mark.slow
@pytest.mark.parametrize("variant", mesh_battery.VARIANTS)
def test_no_mesh_changes_a_variant(variant):
    """What else can be set about a model or its step, each on a mesh that splits everything."""
    mesh_battery.check(variant, "fsdp 2, expert 2, tensor 2", "all_to_all")


@pytest.mark.parametrize("mesh", ["fsdp 8", "fsdp 2, expert 2, tensor 2"])
def test_initialisation_goes_straight_into_shards(mesh):
    """Temporary memory of a device is that of one layer over `fsdp`, a few times; where units move
    to their places (here with `tensor`), they are made in config order."""
    parallel = mesh_battery.parallel_of(mesh, "allgather")
    model = Transformer(mesh_battery.wide_config(), parallel)

    def init(key):
        return model.init(key)[0]

    abstract = jax.eval_shape(init, jax.random.key(0))
    shardings = tree_shardings(abstract, parallel.mesh)
    sharded = jax.jit(init, out_shardings=shardings).lower(jax.random.key(0)).compile()
    memory = sharded.memory_analysis()
    vectors_are_copies = 1.02
    assert memory.output_size_in_bytes <= vectors_are_copies * _bytes(abstract) / 8
    layer = _bytes(abstract["segments"]) / model.config.num_layers
    assert memory.temp_size_in_bytes < 4 * layer / parallel.mesh.shape["fsdp"]
    whole = jax.jit(Transformer(mesh_battery.wide_config()).init)(jax.random.key(0))[0]
    placed = dict(jax.tree.leaves_with_path(sharded(jax.random.key(0))))
    for path, leaf in jax.tree.leaves_with_path(whole):
        if "experts" not in str(path) or parallel.mesh.shape["tensor"] == 1:  # in config order
            np.testing.assert_array_equal(placed[path], leaf, err_msg=str(path))


def _bytes(tree):
    return sum(leaf.dtype.itemsize * leaf.size for leaf in jax.tree.leaves(tree))
