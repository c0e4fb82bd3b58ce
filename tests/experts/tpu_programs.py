"""Compiles the `grouped` back end for a TPU v5e that is not there, and counts what came out.

    python tests/experts/tpu_programs.py ragged_dot megablox tokamax auto

prints one JSON object per line: FLOPs of the compiled program (the compiler's own count) as a
multiple of one ideal grouped matmul, and calls of Mosaic kernels. Needs libtpu and tokamax, and no
TPU: pip install "moejax[tpu]".
"""

import contextlib
import json
import os
import sys

# Before jax is imported: it must not look for a TPU, nor this process for the only right to libtpu.
os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moejax.experts import ExpertsSpec, WidthPlan, expert_ffn, init_weights
from moejax.experts.backends.grouped import staircase
from moejax.experts.backends.grouped_matmul import products
from moejax.routing import Routing

T, K, D, F, E = 2048, 2, 512, 1024, 16
DTYPE = jnp.dtype("bfloat16")
EVERYWHERE = PartitionSpec()
IDEAL = 2 * T * K * D * F
"""FLOPs of one grouped matmul: every row times one matrix."""


def measure(function, *args, told=False):
    """Compiles for the devices that `args` lie on.

    Args:
      told: make the device JAX's default while lowering. tokamax asks the default device what it
        may compile for; nothing else needs to be told.
    """
    device = jax.tree.leaves(args)[0].sharding.mesh.devices.flat[0]
    with jax.default_device(device) if told else contextlib.nullcontext():
        lowered = jax.jit(function).lower(*args)
    compiled = lowered.compile()
    return {
        "flops": round(compiled.cost_analysis()["flops"] / IDEAL, 2),
        "kernels": compiled.as_text().count('custom_call_target="tpu_custom_call"'),
    }


def three_products(name, place):
    rows_RD, rows_RF = place((T * K, D)), place((T * K, F))
    w_GFD, sizes_G = place((E, F, D)), place((E,), jnp.int32)
    arguments = {"nt": (rows_RD, w_GFD), "nn": (rows_RF, w_GFD), "tn": (rows_RF, rows_RD)}
    return {
        key: measure(product, *arguments[key], sizes_G, told=name == "tokamax")
        for key, product in zip(arguments, products(name, "tpu", DTYPE), strict=True)
    }


def layer(place, widths=(F,) * E, unit=F, remat=False, mesh=None, **fields):
    """Value and gradients of all experts; with a mesh, every device has its own tokens."""
    spec = ExpertsSpec(widths, unit, **fields)
    weights = jax.eval_shape(lambda: init_weights(jax.random.key(0), spec, D, DTYPE))
    weights = jax.tree.map(lambda leaf: place(leaf.shape), weights)
    chips = mesh.size if mesh else 1
    tokens = PartitionSpec("data") if mesh else EVERYWHERE

    def loss(x_TD, expert_TK, weight_TK, weights):
        num_tokens = x_TD.shape[0]
        requested_T = jnp.full(num_tokens, K)
        routing = Routing(
            expert_TK, weight_TK, requested_T, None, None, len(widths), num_tokens * K
        )

        def ffn(x_TD, routing, weights):
            return expert_ffn(x_TD, routing, weights, spec)[0]

        y_TD = (jax.checkpoint(ffn) if remat else ffn)(x_TD, routing, weights)
        total = (y_TD.astype(jnp.float32) ** 2).sum()
        return jax.lax.psum(total, "data") if mesh else total

    if mesh:
        specs = (tokens, tokens, tokens, EVERYWHERE)
        loss = jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=EVERYWHERE, check_vma=False)
    return measure(
        jax.value_and_grad(loss, (0, 2, 3)),
        place((chips * T, D), spec=tokens),
        place((chips * T, K), jnp.int32, tokens),
        place((chips * T, K), jnp.float32, tokens),
        weights,
        told=spec.grouped_matmul == "tokamax",
    )


def on(mesh):
    def place(shape, dtype=DTYPE, spec=EVERYWHERE):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    return place


def programs(name):
    """What is measured under a name: a grouped matmul, or "auto"."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    one, four = Mesh(devices[:1], ("data",)), Mesh(devices, ("data",))
    place = on(one)
    if name != "auto":
        found = three_products(name, place)
        return found | {"layer": layer(place, backend="grouped", grouped_matmul=name)}
    plan = WidthPlan("hybrid", mean=F, unit=128)
    widths = plan.widths(E)
    steps = staircase(ExpertsSpec(widths, plan.unit_width))
    # The compiler counts the rows of a buffer, full or not.
    bound = sum(min(K, len(step.experts)) * step.width for step in steps) / (K * F)
    return {
        "layer": layer(place),
        "layer, remat": layer(place, remat=True),
        "layer, four chips": layer(on(four), mesh=four),
        "layer, hybrid": layer(place, widths, plan.unit_width)
        | {"steps": len(steps), "bound": bound},
    }


if __name__ == "__main__":
    for given in sys.argv[1:]:
        for key, value in programs(given).items():
            print(json.dumps({"matmul": given, "program": key, **value}), flush=True)
