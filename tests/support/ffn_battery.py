"""The oracle battery: any `expert_ffn` must equal the loop in values and in every gradient.

Tolerance: float64 1e-10, float32 1e-5, of each tensor's largest magnitude. All routings of the
battery share one shape, so a back end compiles once per experts spec and dtype.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from moejax.experts import ExpertsSpec
from moejax.experts.backends.loop import loop
from moejax.experts.spec import init_weights
from moejax.routing import Routing

T, D, E, K, TILE = 21, 12, 4, 3, 4  # T is a multiple of nothing, and of no tile

SPECS = {
    "uniform": ExpertsSpec((8, 8, 8, 8), unit=8, tile=TILE),
    "unequal": ExpertsSpec((4, 12, 4, 6), unit=2, tile=TILE),
    "with_zero_expert": ExpertsSpec((8, 0, 4, 8), unit=4, tile=TILE),
}
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}


def _table(rows):
    table = np.full((T, K), E, np.int32)
    for token, experts in rows.items():
        table[token, : len(experts)] = experts
    return table


@functools.cache
def routing_tables():
    """Named expert tables `[T, K]`."""
    rng = np.random.default_rng(0)
    mixed = {t: list(rng.permutation(E)[: rng.integers(0, K + 1)]) for t in range(T)}
    # Slots need not be filled from the front.
    holes = _table({t: list(rng.permutation(E)[:K]) for t in range(T)})
    holes[rng.random((T, K)) < 0.4] = E
    return {
        "mixed": _table(mixed),
        "holes": holes,
        "full": _table({t: list(rng.permutation(E)[:K]) for t in range(T)}),
        "an_empty_expert": _table({t: [t % 2, 3] for t in range(T)}),
        "all_on_one_expert": _table({t: [2] for t in range(T)}),
        "one_token": _table({5: [1, 3]}),
        "nothing": _table({}),
        "exactly_one_tile": _table({t: [0] for t in range(TILE)}),
    }


def routing_of(table, dtype):
    """A Routing with distinct weights; `requested` is what is filled, plus 1 for token 0."""
    filled = table < E
    weight = np.random.default_rng(1).uniform(0.1, 1.0, table.shape)
    requested = filled.sum(-1).astype(np.int32)
    requested[0] += 1  # as if k_max had cut one
    return Routing(
        jnp.asarray(table),
        jnp.asarray(np.where(filled, weight, 0.0), dtype),
        jnp.asarray(requested),
        None,
        None,
        E,
        table.size,
    )


def battery(ffn, specs=tuple(SPECS), dtypes=tuple(TOLERANCE), tables=None):
    """Holds `ffn(x, routing, weights, spec) -> (y, ledger)` to the oracle.

    Raises:
      AssertionError: the first disagreement, naming spec, dtype, routing and tensor.
    """
    for dtype in dtypes:
        with jax.enable_x64(dtype == "float64"):
            for name in specs:
                _one_spec(ffn, name, dtype, tables or tuple(routing_tables()))


def _one_spec(ffn, name, dtype, tables):
    spec = SPECS[name]
    x_key, w_key, dy_key = jax.random.split(jax.random.key(0), 3)
    x_TD = jax.random.normal(x_key, (T, D), dtype)
    dy_TD = jax.random.normal(dy_key, (T, D), dtype)
    weights = init_weights(w_key, spec, D, jnp.dtype(dtype))

    def graded(compute):
        def loss(x_TD, weight_TK, weights, routing):
            y_TD, ledger = compute(x_TD, dataclasses.replace(routing, weight_TK=weight_TK), weights)
            return (y_TD * dy_TD).sum(), (y_TD, ledger)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))

    fast = graded(lambda x, r, w: ffn(x, r, w, spec))
    slow = graded(lambda x, r, w: (loop(x, r, w, spec), None))
    for table in tables:
        routing = routing_of(routing_tables()[table], dtype)
        where = f"{name} {dtype} {table}"
        gradients, (y_TD, ledger) = fast(x_TD, routing.weight_TK, weights, routing)
        expected, (want_TD, _) = slow(x_TD, routing.weight_TK, weights, routing)
        filled = np.asarray(routing.filled_TK)
        agree(f"{where}: y", y_TD, want_TD, TOLERANCE[dtype])
        agree(f"{where}: dx", gradients[0], expected[0], TOLERANCE[dtype])
        # The combine weight of an empty slot is nobody's: its gradient must be 0.
        agree(f"{where}: dweight", gradients[1], np.where(filled, expected[1], 0), TOLERANCE[dtype])
        for key in weights:
            agree(f"{where}: d{key}", gradients[2][key], expected[2][key], TOLERANCE[dtype])
        assert bool(ledger.balanced), f"{where}: the ledger does not balance"
        assert int(ledger.kept) == filled.sum(), f"{where}: kept {ledger.kept} of {filled.sum()}"
        assert int(ledger.requested) == filled.sum() + 1, f"{where}: requested"


def agree(where, got, want, tolerance):
    """`max|got - want| <= tolerance * max|want|`, and the same dtype."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype, f"{where}: {got.dtype} is not {want.dtype}"
    error, scale = np.abs(got - want).max(initial=0), np.abs(want).max(initial=0)
    assert error <= tolerance * scale, f"{where}: error {error:.3g} against {scale:.3g}"
