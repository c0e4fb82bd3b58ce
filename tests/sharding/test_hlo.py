"""Costs read from HLO text: programs of known arithmetic, and lines that libtpu printed."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from moejax.sharding.hlo import parse, shapes_of
from moejax.sharding.hlo_costs import first_group
from moejax.sharding.hlo_totals import Route, score_tensors, totals

TPU_STEP = (Path(__file__).parent / "tpu_step.hlo").read_text()


def of(function, *args, **options):
    return totals(parse(jax.jit(function).lower(*args).compile().as_text()), **options)


def scan_of_products(length, n):
    def function(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=length)[0]

    return of(function, jnp.ones((n, n)), jnp.ones((n, n)))


@pytest.mark.parametrize("length", [3, 7])
def test_the_body_of_a_scan_counts_as_often_as_it_runs(length):
    found = scan_of_products(length, 32)
    assert found.product_flops == length * 2 * 32**3
    assert not found.unknown_loops


def test_nested_scans_multiply():
    def function(x, w):
        def outer(x, _):
            return jax.lax.fori_loop(0, 5, lambda i, x: jnp.tanh(x @ w), x), None

        return jax.lax.scan(outer, x, None, length=3)[0]

    assert of(function, jnp.ones((16, 16)), jnp.ones((16, 16))).product_flops == 15 * 2 * 16**3


def test_batched_and_contracted_dimensions_of_a_product():
    found = of(lambda a, b: jnp.einsum("bgsd,bgcd->bgsc", a, b), *[jnp.ones((2, 3, 8, 4))] * 2)
    assert found.product_flops == 2 * 2 * 3 * 8 * 8 * 4


def test_a_loop_whose_length_is_data_counts_once_and_is_named():
    def function(x, w, n):
        return jax.lax.fori_loop(0, n, lambda i, x: jnp.tanh(x @ w), x)

    found = of(function, jnp.ones((16, 16)), jnp.ones((16, 16)), jnp.int32(4))
    assert found.product_flops == 2 * 16**3
    assert len(found.unknown_loops) == 1


def test_one_branch_of_a_conditional_counts():
    def function(x, w, flag):
        return jax.lax.cond(flag, lambda x: x @ w @ w @ w, lambda x: x @ w, x)

    args = (jnp.ones((16, 16)), jnp.ones((16, 16)), jnp.bool_(True))
    assert of(function, *args).product_flops == 2 * 16**3
    assert of(function, *args, branch="most").product_flops == 3 * 2 * 16**3


def test_collectives_in_a_scan_by_kind_group_and_bytes(devices):
    mesh = Mesh(np.asarray(devices).reshape(4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)

    @jax.jit
    def function(x):
        def local(x):
            def body(x, _):
                return jax.lax.psum(x, "b") / 2, jax.lax.all_gather(x, "a")

            return jax.lax.scan(body, x, None, length=5)

        spec = PartitionSpec("a", "b")
        return jax.shard_map(
            local, mesh=mesh, in_specs=spec, out_specs=(spec, PartitionSpec()), check_vma=False
        )(x)

    x = jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    program = parse(function.lower(x).compile().as_text())
    found = totals(program, num_devices=8).collectives
    local = 8 * 8 * 4
    assert found == {
        Route("all-reduce", 2, False): (5, 5 * local),
        Route("all-gather", 4, False): (5, 5 * 4 * local),
    }
    # Two slices: `a` is outermost, so its groups cross and those of `b` do not.
    across = totals(program, num_devices=8, slices=2).collectives
    assert {route.kind: route.slow for route in across} == {"all-reduce": False, "all-gather": True}


def test_memory_traffic_of_a_slice_is_the_slice():
    def function(stack, index):
        return jnp.tanh(jax.lax.dynamic_index_in_dim(stack, index, keepdims=False))

    found = of(function, jnp.ones((100, 64, 64)), jnp.int32(3)).hbm_bytes
    assert 2 * 64 * 64 * 4 <= found <= 4 * 64 * 64 * 4  # not the stack's 1.6 MB


def test_a_tpu_step():
    found = totals(parse(TPU_STEP), num_devices=4)
    scores = 2 * 4 * 2 * 256 * 256 * 128
    projection = 2 * 1024 * 256 * 256
    assert found.product_flops == 3 * projection + scores  # dots that became convolutions
    assert found.collectives == {
        # Started once, carried on inside another fusion.
        Route("all-gather", 4, False): (3, 3 * 256 * 256 * 2),
        Route("reduce-scatter", 2, False): (3, 3 * 512 * 256 * 2),
        Route("all-reduce", 2, False): (3, 3 * 8 * 4),
    }
    runs = {kernel.name: (runs, kernel.flops) for kernel, runs in found.kernels.items()}
    assert runs == {"gmm": (3, 1073741824.0), "splash": (3, None)}
    assert found.kernel_flops == 3 * 1073741824.0
    assert found.silent_kernels == ("splash",)


def test_vector_memory_is_not_main_memory():
    assert [shape.space for shape in shapes_of("(f32[8]{0:T(128)S(1)}, bf16[4,<=8]{1,0})")] == [
        1,
        0,
    ]
    assert shapes_of("bf16[4,<=8]{1,0}")[0].num_bytes == 64


def test_whole_scores_are_found_and_activations_are_not():
    found = score_tensors(parse(TPU_STEP), 256)
    assert len(found) == 1 and found[0].startswith("f32[4,2,256,256] jit(train_step)")
    assert score_tensors(parse(TPU_STEP), 128) == ()


def test_scores_of_attention_are_found_on_any_platform():
    def attend(q, k):
        return jax.nn.softmax(jnp.einsum("bsd,bcd->bsc", q, k))

    args = [jnp.ones((2, 48, 16))] * 2
    program = parse(jax.jit(attend).lower(*args).compile().as_text())
    assert score_tensors(program, 48)
    assert not score_tensors(program, 16)


def test_what_slices_send_each_other():
    text = """ENTRY %main (x: bf16[256,8]) -> bf16[256,8] {
  %x = bf16[256,8]{1,0:T(8,128)(2,1)} parameter(0)
  %after = token[] after-all()
  %send.3 = (bf16[256,8]{1,0}, u32[], token[]) send(%x, %after), channel_id=12, is_host_transfer=true, frontend_attributes={_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %send-done.3 = token[] send-done(%send.3), channel_id=12, is_host_transfer=true
}
"""  # noqa: E501
    found = totals(parse(text), num_devices=8, slices=2).collectives
    assert found == {Route("all-reduce", 2, True): (1, 256 * 8 * 2)}


@pytest.mark.parametrize(
    "text, group",
    [
        ("replica_groups={{0,4},{1,5}}", (0, 4)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", (0, 2, 4, 6)),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", tuple(range(8))),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", (0, 2)),
        ("source_target_pairs={{3,5},{5,3}}", (3, 5)),
        ("replica_groups={}", tuple(range(8))),
    ],
)
def test_groups_in_every_spelling(text, group):
    line = f"  ROOT %one = f32[8]{{0}} all-reduce(%x), {text}, to_apply=%add"
    program = parse(f"ENTRY %main (x: f32[8]) -> f32[8] {{\n{line}\n}}\n")
    assert first_group(program.entry.root, 8) == group


def test_what_is_no_module_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        parse("not HLO")
