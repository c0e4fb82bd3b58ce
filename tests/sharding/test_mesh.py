"""Meshes from config, and which dimension of an array lies where."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from moejax.config import ConfigError
from moejax.sharding import (
    AXES,
    MeshConfig,
    Rows,
    batch_spec,
    leaf_spec,
    make_mesh,
    tree_shardings,
)


def mesh_of(**sizes):
    return make_mesh(MeshConfig(**({"data": 1, "fsdp": 1} | sizes)))


@pytest.mark.parametrize(
    "given, shape",
    [
        ({}, (1, 8, 1, 1)),
        ({"fsdp": 1, "expert": -1}, (1, 1, 8, 1)),
        ({"data": 2, "fsdp": -1, "tensor": 2}, (2, 2, 1, 2)),
        ({"fsdp": 2, "expert": 2, "tensor": 2}, (1, 2, 2, 2)),
        ({"fsdp": 1}, (1, 1, 1, 1)),  # fewer than there are
    ],
)
def test_the_axis_of_minus_one_takes_the_rest(given, shape, devices):
    mesh = make_mesh(MeshConfig(**given))
    assert tuple(mesh.shape[axis] for axis in AXES) == shape
    assert mesh.axis_types == (AxisType.Auto,) * 4
    first = np.prod(shape)
    assert list(mesh.devices.flat) == devices[:first]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"fsdp": 0}, "config.mesh.fsdp=0: an axis has devices; nearest valid value 1"),
        (
            {"expert": -1},
            "config.mesh.expert=-1: fsdp is -1 already, and only one axis can take the rest; "
            "nearest valid value 1",
        ),
        (
            {"expert": 3},
            "config.mesh: data=1 x fsdp=-1 x expert=3 x tensor=1 does not divide 8 devices; "
            "nearest valid value expert=2",
        ),
        (
            {"fsdp": 4, "expert": 4},
            "config.mesh: data=1 x fsdp=4 x expert=4 x tensor=1 needs 16 devices but there are 8; "
            "nearest valid value fsdp=2",
        ),
        (
            {"slices": 2},
            "config.mesh.data=1: 2 slices are an outer factor of data; nearest valid value 2",
        ),
    ],
)
def test_impossible_meshes_are_one_line(given, message):
    with pytest.raises(ConfigError) as error:
        make_mesh(MeshConfig(**given))
    assert str(error.value) == message


@pytest.mark.parametrize(
    "given, chips",
    [
        ({"data": 4, "fsdp": 1, "slices": 2}, 4),  # one slice, said to be two
        ({"data": 2, "fsdp": 1, "slices": 1}, 2),  # a part of a slice with a hole in it
    ],
)
def test_chips_that_do_not_fit_the_mesh_are_one_line(given, chips):
    devices = [
        types.SimpleNamespace(
            id=i,
            platform="tpu",
            device_kind="TPU v5",
            coords=(i if chips == 4 else 3 * i, 0, 0),
            core_on_chip=0,
            process_index=0,
            slice_index=0,
        )
        for i in range(chips)
    ]
    with pytest.raises(ConfigError) as error:
        make_mesh(MeshConfig(**given), devices)
    line = str(error.value)
    assert "\n" not in line and line.startswith("config.mesh: data=")
    assert "nearest valid value config.mesh.slices=1" in line


@pytest.mark.parametrize(
    "name, shape, spec",
    [
        ("gate_NUD", (8, 16, 32), P(("expert", "tensor"), None, ("fsdp",))),
        ("gate_NUD", (3, 8, 16, 32), P(None, ("expert", "tensor"), None, ("fsdp",))),  # layers
        ("q_DHd", (32, 4, 8), P(("fsdp", "expert"), ("tensor",))),
        ("o_HdD", (4, 8, 32), P(("tensor",), None, ("fsdp", "expert"))),
        ("table_VD", (64, 32), P(("tensor",), ("fsdp", "expert"))),
        ("w_DE", (32, 6), P(("fsdp", "expert"))),
        ("scale_D", (3, 31), P()),  # vectors are copies
        ("bias_E", (7,), P()),
    ],
)
def test_axis_letters_say_where(name, shape, spec):
    assert leaf_spec(name, shape, mesh_of(fsdp=2, expert=2, tensor=2)) == spec


def test_what_does_not_divide_is_named():
    mesh = mesh_of(fsdp=2, expert=2, tensor=2)
    tree = {"segments": {"0": {"q_DHd": jnp.zeros((32, 3, 8))}}}
    with pytest.raises(ConfigError) as error:
        tree_shardings(tree, mesh)
    assert str(error.value) == (
        "segments/0/q_DHd: dimension 1 of (32, 3, 8) does not divide over tensor=2 (2 devices); "
        "nearest valid value config.mesh.tensor=1"
    )
    with pytest.raises(ConfigError, match=r"dimension 0 of \(30, 6\) .* config\.mesh\.expert=1$"):
        leaf_spec("w_DE", (30, 6), mesh)
    with pytest.raises(ConfigError, match=r"q_DHd: has 2 dimensions \(4, 4\) but 3 axis letters"):
        leaf_spec("q_DHd", (4, 4), mesh)


def test_optimizer_state_lies_with_its_parameter():
    import optax

    mesh = mesh_of(fsdp=4, tensor=2)
    params = {"ffn": {"gate_FD": jnp.zeros((8, 16)), "scale_D": jnp.zeros(16)}}
    state = optax.adamw(1e-3).init(params)
    placed = tree_shardings(state, mesh)
    moments = placed[0]
    want = NamedSharding(mesh, P(("tensor",), ("fsdp",)))
    assert moments.mu["ffn"]["gate_FD"] == moments.nu["ffn"]["gate_FD"] == want
    assert moments.count.spec == moments.mu["ffn"]["scale_D"].spec == P()


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"data": 2, "tensor": 4}, {"tensor": 2}])
def test_rows_become_the_global_batch(sizes):
    mesh = mesh_of(**sizes)
    rows = Rows(mesh, 8)
    np.testing.assert_array_equal(rows.mine, np.arange(8))  # one process holds them all
    batch = {"tokens": np.arange(24, dtype=np.int32).reshape(8, 3)}
    placed = rows.put(batch)["tokens"]
    np.testing.assert_array_equal(placed, batch["tokens"])
    assert placed.sharding == NamedSharding(mesh, batch_spec(mesh))


def test_cross_entropy_in_bfloat16_on_a_mesh():
    """XLA:CPU aborts on a bfloat16 all-reduce in a partly manual region: there must be none."""
    from moejax.models.cross_entropy import chunked_cross_entropy, sharded_cross_entropy

    keys = jax.random.split(jax.random.key(0), 3)
    x_BSD = jax.random.normal(keys[0], (8, 4, 16), jnp.bfloat16)
    table_VD = jax.random.normal(keys[1], (32, 16), jnp.bfloat16)
    targets_BS = jax.random.randint(keys[2], (8, 4), 0, 32)
    rest = targets_BS, jnp.ones((8, 4))
    options = {"chunk": 2}

    def graded(loss, **more):
        step = jax.grad(lambda x, t: loss(x, t, *rest, **options, **more)[0], argnums=(0, 1))
        return jax.jit(step)(x_BSD, table_VD)

    want = graded(chunked_cross_entropy)
    for mesh in (mesh_of(fsdp=8), mesh_of(fsdp=4, tensor=2)):
        got = graded(sharded_cross_entropy, mesh=mesh)
        for one, other in zip(got, want, strict=True):
            one, other = (np.asarray(leaf, np.float32) for leaf in (one, other))
            np.testing.assert_allclose(one, other, atol=0.02 * np.abs(other).max())
