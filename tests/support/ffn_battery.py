"""The oracle battery: whatever computes experts must equal its oracle in values and gradients.

A *subject* turns tokens and a routing into outputs. `FFNS` are back ends under `expert_ffn`, held
to `loop`; `LAYER` is everything behind the router of an MoE layer (experts of two widths, the
zero-computation experts of MoE++, a gated shared expert), held to the definitions written out one
expert after the other. Tolerance: float64 1e-10, float32 1e-5, of each tensor's largest magnitude.
All routings of a subject share one shape, so it compiles once per dtype.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moejax.config.widths import WidthPlan
from moejax.experts import ExpertsSpec, MoeConfig, MoELayer, ZeroCompute, expert_ffn, init_weights
from moejax.experts.backends.loop import loop
from moejax.experts.spec import ACTIVATIONS, expert_rows, projections
from moejax.routing import Routing
from moejax.routing.routers import TopK, top_k, top_p

T, D, E, K, TILE = 21, 12, 4, 4, 4  # T is a multiple of nothing, and of no tile
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}


@dataclasses.dataclass(frozen=True)
class Subject:
    """`init(key, dtype) -> weights`; both `compute` and `oracle` are `(x_TD, routing, weights) ->
    (y_TD, ledger or None)`."""

    num_experts: int
    init: Callable
    compute: Callable
    oracle: Callable


# ---- back ends


def _spec(plan, activation):
    return ExpertsSpec(plan.widths(E), plan.unit_width, activation, tile=TILE)


SPECS = {
    "uniform": _spec(WidthPlan(mean=8), "swiglu"),
    "arithmetic": _spec(WidthPlan("arithmetic", mean=8, unit=2), "geglu"),
    "geometric": _spec(WidthPlan("geometric", mean=8, unit=1), "gelu"),
    "hybrid": _spec(WidthPlan("hybrid", mean=8, unit=4), "relu"),
    "explicit": _spec(WidthPlan("explicit", explicit=(8, 0, 4, 8)), "relu2"),
}
"""Every width strategy of HMoE and every activation; an expert of width 0."""


@functools.cache
def ffn_subject(name, backend, matmul="auto", rows_per_token=0.0):
    spec = dataclasses.replace(
        SPECS[name], backend=backend, grouped_matmul=matmul, rows_per_token=rows_per_token
    )
    return Subject(
        num_experts=E,
        init=lambda key, dtype: init_weights(key, spec, D, jnp.dtype(dtype)),
        compute=lambda x_TD, routing, weights: expert_ffn(x_TD, routing, weights, spec),
        oracle=lambda x_TD, routing, weights: (loop(x_TD, routing, weights, spec), None),
    )


# ---- everything behind the router of a layer

LAYER_CONFIG = MoeConfig(
    experts=2,
    widths=WidthPlan("explicit", explicit=(4, 12)),
    router=TopK(k=2),
    zero_compute=ZeroCompute(constant=2, copy=1, zero=1),
    shared_width=6,
    shared_gate=True,
    activation="geglu",
    tile=TILE,
)


@functools.cache
def layer_subject(config=LAYER_CONFIG):
    def build(key, dtype):
        layer = MoELayer(D, config, rngs=nnx.Rngs(key), param_dtype=jnp.dtype(dtype))
        return nnx.split(layer, nnx.Param, ...)

    def compute(x_TD, routing, weights):
        graph, params, rest = nnx.split(
            nnx.eval_shape(lambda: MoELayer(D, config, rngs=nnx.Rngs(0))), nnx.Param, ...
        )
        nnx.replace_by_pure_dict(params, weights)
        return nnx.merge(graph, params, rest).compute(x_TD, routing)

    return Subject(
        num_experts=config.num_experts,
        init=lambda key, dtype: nnx.to_pure_dict(build(key, dtype)[1]),
        compute=compute,
        oracle=lambda x_TD, routing, weights: (written_out(x_TD, routing, weights, config), None),
    )


def written_out(x_TD, routing, weights, config):
    """`sum_e combine[t, e] E_e(x_t) + sigmoid(w . x_t) shared(x_t)`, from the definitions."""
    combine_TE = routing.combine_TE()
    names = projections(config.activation)

    def ffn(arrays):
        *into, down = arrays
        return ACTIVATIONS[config.activation](*(x_TD @ w.T for w in into)) @ down

    outputs = [
        ffn([expert_rows(weights["experts"][f"{n}_NUD"], config.spec, e) for n in names])
        for e in range(config.experts)
    ]
    for index in range(config.zero_compute.constant):
        mix_TA = jax.nn.softmax(x_TD @ weights["gates"]["mix_C2D"][index].T, axis=-1)
        outputs.append(mix_TA[:, :1] * x_TD + mix_TA[:, 1:] * weights["gates"]["bias_CD"][index])
    outputs += [x_TD] * config.zero_compute.copy
    outputs += [0 * x_TD] * config.zero_compute.zero
    y_TD = sum(combine_TE[:, e : e + 1] * output for e, output in enumerate(outputs))
    shared_TD = ffn([weights["shared"][f"{n}_FD"] for n in names])
    return y_TD + jax.nn.sigmoid(x_TD @ weights["gates"]["shared_D"])[:, None] * shared_TD


# ---- routings


def _table(rows, num_experts):
    table = np.full((T, K), num_experts, np.int32)
    for token, experts in rows.items():
        table[token, : len(experts)] = experts
    return table


@functools.cache
def routing_tables(num_experts=E):
    """Named `(experts [T, K], weights [T, K])`: corner cases with distinct weights, and what the
    rules top-k and top-p make of random scores."""
    rng = np.random.default_rng(0)
    last = num_experts - 1

    def some(token):
        return list(rng.permutation(num_experts)[: rng.integers(0, K + 1)])

    full = _table({t: list(rng.permutation(num_experts)[:K]) for t in range(T)}, num_experts)
    # Slots need not be filled from the front.
    holes = np.where(rng.random((T, K)) < 0.4, num_experts, full)
    tables = {
        "mixed": _table({t: some(t) for t in range(T)}, num_experts),
        "holes": holes,
        "full": full,
        "an_empty_expert": _table({t: [t % 2, last] for t in range(T)}, num_experts),
        "all_on_one_expert": _table({t: [2] for t in range(T)}, num_experts),
        "one_token": _table({5: [1, last]}, num_experts),
        "nothing": _table({}, num_experts),
        "exactly_one_tile": _table({t: [0] for t in range(TILE)}, num_experts),
    }
    weight = np.random.default_rng(1).uniform(0.1, 1.0, (T, K))
    named = {
        name: (table, np.where(table < num_experts, weight, 0)) for name, table in tables.items()
    }
    scores = rng.exponential(size=(T, num_experts)).astype(np.float32)
    scores /= scores.sum(-1, keepdims=True)
    return named | {
        name: (np.asarray(chosen.expert_TK), np.asarray(chosen.weight_TK, np.float64))
        for name, chosen in _chosen(scores).items()
    }


@jax.jit
def _chosen(scores_TE):
    two = top_k(scores_TE, 2, renormalise=True)
    empty = ((0, 0), (0, K - 2))
    return {
        "top_k": two._replace(
            expert_TK=jnp.pad(two.expert_TK, empty, constant_values=scores_TE.shape[1]),
            weight_TK=jnp.pad(two.weight_TK, empty),
        ),
        "top_p": top_p(scores_TE, 0.6, inclusive=True, renormalise=True, k_max=K),
    }


def routing_of(name, dtype, num_experts=E):
    """A Routing of that table; `requested` is what is filled, plus 1 for token 0."""
    table, weight = routing_tables(num_experts)[name]
    requested = (table < num_experts).sum(-1).astype(np.int32)
    requested[0] += 1  # as if k_max had cut one
    return Routing(
        jnp.asarray(table),
        jnp.asarray(weight, dtype),
        jnp.asarray(requested),
        None,
        None,
        num_experts,
        table.size,
    )


# ---- the battery


@functools.cache
def graded(compute):
    """Gradients with respect to input, combine weights and weights, and `(y, ledger)`."""

    def loss(x_TD, weight_TK, weights, routing, dy_TD):
        y_TD, ledger = compute(x_TD, dataclasses.replace(routing, weight_TK=weight_TK), weights)
        return (y_TD * dy_TD).sum(), (y_TD, ledger)

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))


def battery(subject, dtypes=tuple(TOLERANCE), tables=None, run=None):
    """Holds a subject to its oracle under every routing.

    Args:
      run: in the place of `graded(subject.compute)`.

    Raises:
      AssertionError: the first disagreement, naming dtype, routing and tensor.
    """
    run = run or graded(subject.compute)
    tables = tables or tuple(routing_tables(subject.num_experts))
    for dtype in dtypes:
        with jax.enable_x64(dtype == "float64"):
            _one_dtype(subject, run, dtype, tables)


def _one_dtype(subject, run, dtype, tables):
    tolerance = TOLERANCE[dtype]
    x_key, w_key, dy_key = jax.random.split(jax.random.key(0), 3)
    x_TD = jax.random.normal(x_key, (T, D), dtype)
    dy_TD = jax.random.normal(dy_key, (T, D), dtype)
    weights = jax.jit(subject.init, static_argnums=1)(w_key, dtype)
    # Gates are float32 in any model; here they follow, so that all of it is held to one tolerance.
    weights = jax.tree.map(lambda leaf: leaf.astype(dtype), weights)
    for table in tables:
        routing = routing_of(table, dtype, subject.num_experts)
        args = (x_TD, routing.weight_TK, weights, routing, dy_TD)
        where = f"{dtype} {table}"
        gradients, (y_TD, ledger) = run(*args)
        expected, (want_TD, _) = graded(subject.oracle)(*args)
        filled = np.asarray(routing.filled_TK)
        agree(f"{where}: y", y_TD, want_TD, tolerance)
        agree(f"{where}: dx", gradients[0], expected[0], tolerance)
        # The combine weight of an empty slot is nobody's: its gradient must be 0.
        agree(f"{where}: dweight", gradients[1], np.where(filled, expected[1], 0), tolerance)
        for path, leaf in jax.tree.leaves_with_path(expected[2]):
            key = jax.tree_util.keystr(path, simple=True, separator="/")
            got = dict(jax.tree.leaves_with_path(gradients[2]))[path]
            agree(f"{where}: d{key}", got, leaf, tolerance)
        assert bool(ledger.balanced), f"{where}: the ledger does not balance"
        assert int(ledger.kept) == filled.sum(), f"{where}: kept {ledger.kept} of {filled.sum()}"
        assert int(ledger.requested) == filled.sum() + 1, f"{where}: requested"


def agree(where, got, want, tolerance):
    """`max|got - want| <= tolerance * max|want|`, and the same dtype."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype, f"{where}: {got.dtype} is not {want.dtype}"
    error, scale = np.abs(got - want).max(initial=0), np.abs(want).max(initial=0)
    assert error <= tolerance * scale, f"{where}: error {error:.3g} against {scale:.3g}"
