"""Tiny models and batches for the methods of fine-tuning, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

from moejax.experts import MoeConfig, WidthPlan
from moejax.experts.exchange.config import ExchangeConfig
from moejax.experts.exchange.sharded import Parallel
from moejax.models import ModelConfig, Transformer
from moejax.models.attention import AttentionConfig
from moejax.models.block import Tokens
from moejax.routing import LossesConfig
from moejax.routing.losses import LoadBalance
from moejax.routing.routers import TopK
from moejax.sharding import MeshConfig, batch_spec, make_mesh, tree_shardings
from moejax.train.layout import make_layout
from moejax.train.optimizer import OptimizerConfig, make_optimizer
from moejax.train.state import make_start
from moejax.train.step import make_train_step

VOCAB, D, ROWS, LENGTH = 24, 16, 8, 6
NO_LOSSES = LossesConfig(LoadBalance(0.0))
EQUAL = MoeConfig(8, WidthPlan(mean=8, unit=4), TopK(k=2), losses=NO_LOSSES, backend="loop")
UNEQUAL = MoeConfig(
    5,
    WidthPlan("explicit", explicit=(8, 4, 12, 4, 4)),
    TopK(k=2),
    losses=NO_LOSSES,
    backend="loop",
    shared_width=8,
)
"""Units of 4; on eight devices experts move, and there is padding."""


def model_config(moe=UNEQUAL, **changes):
    """Two MoE layers, which are stacked."""
    given = {
        "vocab_size": VOCAB,
        "d_model": D,
        "num_layers": 2,
        "ffn_width": 16,
        "attention": AttentionConfig(heads=2),
        "moe": moe,
    }
    return ModelConfig(**given | changes)


def random_params(model, seed=0, scale=0.3, dtype=None):
    """Parameters and router state of the right shapes; padding of a mesh is not zero here, so only
    for models on one device."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape), dtype or leaf.dtype),
        shapes,
    )


def batch(seed=0):
    """One document in each row."""
    tokens = np.random.default_rng(seed).integers(0, VOCAB, (ROWS, LENGTH + 1), np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": np.ones((ROWS, LENGTH), np.int32),
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
        "loss_mask": np.ones((ROWS, LENGTH), np.float32),
    }


def loss_of_layers(model, params, state):
    """A number that depends on every layer, in the dtype of the parameters: what the stack makes of
    random hidden states (the whole model computes in float32)."""
    data = batch()
    tokens = Tokens(data["tokens"], data["positions"], data["segment_ids"])
    random = np.random.default_rng(5)
    x_BSD, weight_BSD = (jnp.asarray(random.standard_normal((ROWS, LENGTH, D))) for _ in range(2))
    (stack,) = model.segments
    y_BSD, _ = stack.apply(
        params["segments"]["0"], state["segments"]["0"], x_BSD, tokens, key=None, train=True
    )
    return (weight_BSD * y_BSD).mean()


def planned(method, model):
    """The method for a model, and the shapes of the latter's parameters."""
    abstract, _ = jax.eval_shape(model.init, jax.random.key(0))
    return method.plan(model, abstract)


class Bowl(Transformer):
    """A model whose loss pulls every parameter towards 1: everything has a gradient, and a step
    compiles in a moment."""

    def loss(self, params, router_state, batch, key, **options):
        total = sum(jnp.square(leaf - 1).sum() for leaf in jax.tree.leaves(params))
        return total, {}

    def summarise(self, out):
        return {}

    def update_router_state(self, router_state, out):
        return router_state


def eight_devices():
    """A mesh of two by four."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, expert=4), jax.devices())
    return Parallel(mesh, ExchangeConfig())


def trained(method, config, params, router_state, *, steps=3, parallel=None, kind=Transformer):
    """The whole parameters before and after steps with clipping, momentum and weight decay, and the
    train state, all in config order.

    Args:
      params, router_state: of the model on one device.
      kind: class of the model.
    """
    model = kind(config, parallel)
    tuning = planned(method, model)
    knobs = OptimizerConfig(lr=0.05, weight_decay=0.3, clip_norm=0.5)
    chain = make_optimizer(knobs, lambda count: jnp.ones(()))
    # A second momentum behind AdamW: nothing of it may reach what is frozen.
    chain = optax.chain(chain, optax.trace(0.9))
    start = make_start(tuning, chain)
    step = make_train_step(model, chain, lambda done: jnp.ones(()), 1, tuning)
    data, shardings = batch(), None
    if parallel is None:
        before = params
        store = layout = None
        state = jax.jit(start)(1, params, router_state)
    else:
        mesh = parallel.mesh
        layout = _layout(jax.eval_shape(model.init, jax.random.key(0))[0], model, mesh)
        held = layout.hold(jax.device_put(params, jax.tree.map(_sharding, layout.stored)))
        before = jax.tree.map(np.asarray, layout.store(held))
        abstract = jax.eval_shape(start, 1, held, router_state)
        shardings = tree_shardings(abstract, mesh)
        state = jax.jit(start, out_shardings=shardings)(1, held, router_state)
        store = _layout(abstract, model, mesh).store
        data = jax.device_put(data, NamedSharding(mesh, batch_spec(mesh)))
    run = jax.jit(step, out_shardings=None if shardings is None else (shardings, None))
    for _ in range(steps):
        state, metrics = jax.block_until_ready(run(state, data))
        assert bool(metrics["finite"])
    after = jax.jit(tuning.assemble)(state.trainable, state.frozen)
    if layout is not None:
        after, state = layout.store(after), store(state)
    return jax.tree.map(np.asarray, (before, after, state))


def _layout(abstract, model, mesh):
    placed = jax.tree.map(
        lambda leaf, own: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own),
        abstract,
        tree_shardings(abstract, mesh),
    )
    return make_layout(placed, model.placements(), mesh)


def _sharding(leaf):
    return leaf.sharding
