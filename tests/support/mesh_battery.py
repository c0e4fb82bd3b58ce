"""The equality battery: a mesh changes nothing but time.

A *cell* is a kind of model, a mesh and an exchange. Every gradient of the first of three optimiser
steps, loss, counts and ledger of each, and the whole state after them must equal those of one
device: float32, 1e-5 of each tensor's largest magnitude. Batches hold several documents and
padding; the unequal widths and the seven experts do not divide over the devices.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

from moejax.experts import MoeConfig, WidthPlan, ZeroCompute
from moejax.experts.exchange.config import ExchangeConfig
from moejax.experts.exchange.sharded import Parallel
from moejax.models import ModelConfig
from moejax.models.attention import AttentionConfig, LatentAttentionConfig
from moejax.models.transformer import Transformer
from moejax.routing import LossesConfig
from moejax.routing.capacity import CapacityConfig
from moejax.routing.losses import LoadBalance
from moejax.routing.routers import MoEPlusPlus, SigmoidBias, TopK, TopP
from moejax.sharding import MeshConfig, batch_spec, make_mesh, tree_shardings
from moejax.train.layout import make_layout
from moejax.train.state import make_init
from moejax.train.step import make_train_step

VOCAB, D, ROWS, LENGTH = 32, 32, 8, 12
TOLERANCE = 1e-5
LOOSER = {
    # Its gradients keep the rule (1.3e-6); three steps at this learning rate make up to 1.7e-5.
    ("latent attention", "state"): 5e-5,
    # Partial sums are rounded to 8 bits where one device adds them in float32: measured 1.7e-2, and
    # 2.3e-3 of the metrics.
    ("bfloat16", "gradients"): 4e-2,
    ("bfloat16", "metrics"): 5e-3,
    ("bfloat16", "state"): 4e-2,
}
"""Of a tensor's largest magnitude, by kind and part of the result."""
EQUAL = WidthPlan(mean=16, unit=4)
UNEQUAL = WidthPlan("arithmetic", mean=16, unit=1)

KINDS = {
    "dense": None,
    "top_k": MoeConfig(widths=EQUAL, router=TopK(k=2)),
    "top_p": MoeConfig(widths=EQUAL, router=TopP(p=0.4)),
    "hetero_top_k": MoeConfig(widths=UNEQUAL, router=TopK(k=2)),
    "hetero_top_p": MoeConfig(widths=UNEQUAL, router=TopP(p=0.4)),
    "shared": MoeConfig(widths=EQUAL, router=TopK(k=2), shared_width=16, shared_gate=True),
    "sigmoid_bias": MoeConfig(widths=EQUAL, router=SigmoidBias(k=2)),
    # 7 experts on 8 devices: one device holds a piece of padding.
    "seven": MoeConfig(experts=7, widths=EQUAL, router=TopK(k=2)),
}
MOE = MoeConfig(widths=EQUAL, router=TopK(k=2))
VARIANTS = {
    "micro-batches": {"moe": MOE, "accumulate": 2},
    "losses over micro-batches": {
        "moe": dataclasses.replace(MOE, losses=LossesConfig(LoadBalance(0.1, scope="global"))),
        "accumulate": 2,
    },
    "remat": {"moe": MOE, "remat": "full"},
    "unrolled": {"moe": MOE, "scan": False, "first_dense": 1},
    "tied": {"moe": MOE, "tied_embeddings": True, "loss_chunk": 3},
    "capacity": {
        "moe": dataclasses.replace(MOE, capacity=CapacityConfig(factor=0.7)),
        "allow_noncausal": True,
    },
    "carry": {
        "moe": MoeConfig(
            widths=EQUAL,
            router=MoEPlusPlus(k=2, zero_experts=1),
            zero_compute=ZeroCompute(zero=1, copy=1, constant=1),
        )
    },
    "latent attention": {
        "moe": MOE,
        "attention": LatentAttentionConfig(
            heads=4,
            q_lora_rank=16,
            kv_lora_rank=8,
            qk_nope_head_dim=8,
            qk_rope_head_dim=4,
            v_head_dim=8,
        ),
    },
    # Every expert: rounding must not change who is chosen.
    "bfloat16": {
        "moe": MoeConfig(widths=EQUAL, router=TopK(k=8)),
        "compute_dtype": "bfloat16",
    },
}
"""What else may be set: changes of `config`'s model, and micro-batches of a step."""

MESHES = {
    "data 8": {"data": 8},
    "fsdp 8": {"fsdp": 8},
    "expert 2": {"expert": 2},
    "expert 4": {"expert": 4},
    "expert 8": {"expert": 8},
    "tensor 2": {"tensor": 2},
    "fsdp 2, expert 2, tensor 2": {"fsdp": 2, "expert": 2, "tensor": 2},
    "data 2, expert 2, tensor 2": {"data": 2, "expert": 2, "tensor": 2},
    "data 2, fsdp 2, expert 2": {"data": 2, "fsdp": 2, "expert": 2},
}
EXCHANGES = {
    "allgather": ExchangeConfig("allgather"),
    "all_to_all": ExchangeConfig("all_to_all"),
    "ragged": ExchangeConfig("ragged"),
    # Buffers that are too small: the exact way out.
    "all_to_all, overflowing": ExchangeConfig("all_to_all", factor=0.3),
    "ragged, overflowing": ExchangeConfig("ragged", factor=0.3),
}


def applicable(kind, mesh, exchange):
    """Without experts on several devices nothing is exchanged: one exchange stands for all."""
    exchanged = KINDS[kind] is not None and MESHES[mesh].get("expert", 1) > 1
    return exchanged or exchange == "allgather"


def cells():
    """All of them."""
    return [
        (kind, mesh, exchange)
        for kind in KINDS
        for mesh in MESHES
        for exchange in EXCHANGES
        if applicable(kind, mesh, exchange)
    ]


def covering():
    """Few cells that hold every pair of kind and exchange, every pair of mesh and exchange, and
    both overflows; all pairs of kind and mesh alone would be 72 cells."""

    def pairs(cell):
        kind, mesh, exchange = cell
        travels = EXCHANGES[exchange].kind
        return {(kind, travels), (mesh, travels), (exchange,)}

    return _cover(pairs)


def pairwise():
    """Cells that hold every pair of kind, mesh and exchange, those of `covering` left out."""

    def pairs(cell):
        kind, mesh, exchange = cell
        return {(kind, mesh), (kind, exchange), (mesh, exchange)}

    return [cell for cell in _cover(pairs) if cell not in covering()]


def _cover(pairs):
    """Greedily few cells that together hold everything that some cell holds."""
    left = set().union(*(pairs(cell) for cell in cells()))
    chosen = []
    while left:
        best = max(cells(), key=lambda cell: len(pairs(cell) & left))
        chosen.append(best)
        left -= pairs(best)
    return chosen


def config(kind):
    """Model and micro-batches."""
    changes = dict(VARIANTS.get(kind) or {"moe": KINDS[kind]})
    accumulate = changes.pop("accumulate", 1)
    base = ModelConfig(
        vocab_size=VOCAB,
        d_model=D,
        num_layers=2,
        ffn_width=32,
        attention=AttentionConfig(heads=4, kv_heads=2),
    )
    return dataclasses.replace(base, **changes), accumulate


def wide_config():
    """A model whose matrices outweigh its vectors."""
    moe = MoeConfig(widths=WidthPlan(mean=128, unit=64), router=TopK(k=2))
    return dataclasses.replace(config("top_k")[0], vocab_size=512, d_model=128, moe=moe)


def batch():
    """Packed documents; the last tokens of most rows are padding, one row is nothing else."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, (ROWS, LENGTH + 1)).astype(np.int32)
    segment = np.ones((ROWS, LENGTH), np.int32)
    segment[:, 5:] = 2
    segment[1::2, 9:] = 0
    segment[6] = 0
    place = np.arange(LENGTH, dtype=np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": segment,
        "positions": np.where(segment == 2, place - 5, place).astype(np.int32),
        "loss_mask": (segment > 0).astype(np.float32),
    }


def parallel_of(mesh, exchange):
    sizes = {"data": 1, "fsdp": 1} | MESHES[mesh]
    mesh = make_mesh(MeshConfig(**sizes), jax.devices())
    return Parallel(mesh, EXCHANGES[exchange])


def result(kind, parallel=None):
    """Gradients, state and metrics of three steps, in config order."""
    changed, accumulate = config(kind)
    model = Transformer(changed, parallel)
    # SGD: Adam's first steps divide a gradient by its own size, which turns a rounding error of a
    # gradient that is nearly zero into a whole step.
    optimizer = optax.sgd(0.3, momentum=0.9)
    init = make_init(model, optimizer)
    step = make_train_step(model, optimizer, lambda step: jnp.full((), 0.3), accumulate)
    data, abstract = batch(), jax.eval_shape(init, 0)
    shardings, layout = None, make_layout(abstract, {}, None)
    if parallel is not None:
        mesh = parallel.mesh
        shardings = tree_shardings(abstract, mesh)
        held = jax.tree.map(
            lambda leaf, own: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own),
            abstract,
            shardings,
        )
        layout = make_layout(held, model.placements(), mesh)
        data = jax.device_put(data, NamedSharding(mesh, batch_spec(mesh)))
    state = jax.jit(init, out_shardings=shardings)(0)
    step = jax.jit(step, out_shardings=None if shardings is None else (shardings, None))
    states, metrics = [], []
    for _ in range(3):
        # One program at a time: collectives of two may wait for each other's threads on a CPU.
        state, found = jax.block_until_ready(step(state, data))
        states.append(jax.block_until_ready(layout.store(state)))
        metrics.append(found | {"_routing": model.host_routing(found)})
    # After one step the momentum is the gradient.
    found = {"gradients": states[0].opt_state, "state": states[-1], "metrics": metrics}
    return jax.tree.map(np.asarray, found)


@functools.cache
def on_one_device(kind):
    return result(kind)


def check(kind, mesh, exchange):
    """Raises AssertionError naming the tensor in which a cell differs from one device."""
    got, want = result(kind, parallel_of(mesh, exchange)), on_one_device(kind)
    for path, leaf in jax.tree.leaves_with_path(want):
        other = dict(jax.tree.leaves_with_path(got))[path]
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        assert other.shape == leaf.shape and other.dtype == leaf.dtype, where
        if not np.issubdtype(leaf.dtype, np.floating):
            np.testing.assert_array_equal(other, leaf, err_msg=where)
            continue
        tolerance = LOOSER.get((kind, path[0].key), TOLERANCE)
        error, scale = np.abs(other - leaf).max(initial=0), np.abs(leaf).max(initial=0)
        assert error <= tolerance * scale, f"{where}: error {error:.3g} against {scale:.3g}"
