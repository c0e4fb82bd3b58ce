"""Buffers of a fixed size: what does not fit is counted, or takes the exact way."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moejax.config.widths import WidthPlan
from moejax.experts import MoeConfig, MoELayer
from moejax.experts.exchange.all_to_all import rows_per_pair
from moejax.experts.exchange.config import ExchangeConfig
from moejax.experts.exchange.ragged import rows_received
from moejax.experts.exchange.sharded import Parallel
from moejax.routing import RouterInputs
from moejax.routing.routers import TopK, TopP
from moejax.sharding import MeshConfig, make_mesh

T, D = 64, 16
CONFIG = MoeConfig(widths=WidthPlan("arithmetic", mean=16, unit=1), router=TopP(p=0.4))


def layer(exchange, config=CONFIG):
    parallel = exchange and Parallel(make_mesh(MeshConfig(1, 2, 4, 1)), exchange)
    return MoELayer(D, config, rngs=nnx.Rngs(0), parallel=parallel)


def forward(exchange):
    one = layer(exchange)
    x_TD = jax.random.normal(jax.random.key(1), (T, D))
    inputs = RouterInputs.of(T, valid_T=jnp.arange(T) % 7 != 0)
    graph, state = nnx.split(one)
    out = jax.jit(lambda state, x: nnx.merge(graph, state).forward(x, inputs))(state, x_TD)
    return x_TD, out


@pytest.mark.parametrize(
    "kind, cause", [("all_to_all", "exchange_send"), ("ragged", "exchange_receive")]
)
def test_what_finds_no_room_is_counted_and_not_computed(kind, cause):
    exchange = ExchangeConfig(kind, factor=0.3, overflow="drop")
    x_TD, out = forward(exchange)
    dropped = int(getattr(out.ledger, cause))
    assert dropped > 0 and bool(out.ledger.balanced)
    assert int(out.ledger.kept) == int(out.kept.filled_TK.sum())
    assert int(out.routing.filled_TK.sum()) - dropped == int(out.ledger.kept)
    # Exactly what is in the books as kept was computed.
    want, _ = layer(None).compute(x_TD, out.kept)
    np.testing.assert_allclose(out.y_TD, want, atol=1e-5 * np.abs(want).max())
    # With room for all of it nothing is dropped.
    _, roomy = forward(dataclasses.replace(exchange, factor=100.0))
    assert int(roomy.ledger.kept) == int(roomy.ledger.requested)


def test_the_size_of_buffers():
    # 64 tokens with 2 experts each on 8 devices: 16 rows to each, twice that, at most all tokens.
    assert rows_per_pair(64, 128, 8, 1.0) == 16
    assert rows_per_pair(64, 128, 8, 2.0) == 32
    assert rows_per_pair(64, 512, 8, 2.0) == 64
    assert rows_per_pair(1, 1, 8, 0.1) == 1
    assert rows_received(64, 128, 8, 1.0) == 128
    assert rows_received(64, 512, 8, 2.0) == 512


@pytest.mark.parametrize("kind", ["all_to_all", "ragged"])
def test_a_bounded_buffer_that_suffices_has_the_gradients_of_one_device(kind):
    """Fewer rows than there could be, and none lost: the path that pods take."""

    tokens, each = 256, 256 // 8
    config = dataclasses.replace(CONFIG, router=TopK(k=1, renormalise=False))

    def graded(exchange):
        one = layer(exchange, config)
        graph, params, rest = nnx.split(one, nnx.Param, ...)
        x_TD = jax.random.normal(jax.random.key(1), (tokens, D))

        @jax.jit
        def step(params, x_TD):
            def loss(params, x_TD):
                out = nnx.merge(graph, params, rest).forward(x_TD, RouterInputs.of(tokens))
                return (out.y_TD**2).mean(), out.ledger

            return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x_TD)

        (dparams, dx_TD), ledger = step(params, x_TD)
        experts = nnx.to_pure_dict(dparams)["experts"]
        if exchange is not None:
            placed = one.parallel.placement(one.spec)
            experts = {name: placed.restore(leaf, 0) for name, leaf in experts.items()}
        return experts | {"router": nnx.to_pure_dict(dparams)["router"]["w_DE"], "x": dx_TD}, ledger

    exchange = ExchangeConfig(kind, factor=2.0, overflow="drop")
    placed = layer(exchange, config).parallel.placement(config.spec)
    planned = each * placed.mean_pieces
    assert rows_per_pair(each, planned, 4, 2.0) < each
    assert rows_received(each, planned, 4, 2.0) < 4 * each
    got, ledger = graded(exchange)
    assert int(ledger.kept) == int(ledger.requested)
    want, _ = graded(None)
    for name, leaf in want.items():
        np.testing.assert_allclose(got[name], leaf, atol=1e-5 * np.abs(leaf).max(), err_msg=name)
