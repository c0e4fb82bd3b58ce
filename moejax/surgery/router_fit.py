"""Routers fitted to the activity of a frozen FFN, as MoEfication does (2110.01786, official code).

A router sees the token's direction and is to say which experts answer most. Its targets are the
activities of all experts; nothing but the router learns.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from moejax.routing.contract import Params, RouterInputs
from moejax.routing.routers import MoEfication
from moejax.surgery.partition import unit_rows

HELD_OUT = 0.1
BATCH = 512
LEARNING_RATE = 0.01


@dataclasses.dataclass(frozen=True)
class Fit:
    """How well a router finds the experts that matter, on tokens that it was not fitted to.

    Attributes:
      captured: share of the activity of all experts that the `k` it chooses have.
      oracle: the most that any `k` have; `uniform`: k/E, what chance has.
      found: share of the oracle's choices that are among its own.
      tokens: how many it was measured on.
      epochs: of the parameters that were kept; 0: those it began with.
    """

    captured: float
    oracle: float
    uniform: float
    found: float
    tokens: int
    epochs: int = 0


def centres(ffn_row_FD: NDArray, expert_F: NDArray, experts: int) -> NDArray[np.float32]:
    """`[D, E]`: the mean of each expert's units, each of length 1 (MoEfication's `ParamCenter`)."""
    owned_EF = np.equal.outer(np.arange(experts), expert_F).astype(np.float32)
    mean_ED = (owned_EF / owned_EF.sum(1, keepdims=True)) @ unit_rows(ffn_row_FD)
    return np.ascontiguousarray(mean_ED.T)


def similarity_params(centre_DE: NDArray) -> Params:
    """The linear router that ranks experts by the cosine of token and centre."""
    return {"w_DE": np.ascontiguousarray(unit_rows(centre_DE.T).T)}


def first_params(router: MoEfication, centre_DE: NDArray, key: jax.Array) -> Params:
    """Where a fit starts: the centres, and after the tanh the identity, which is the similarity
    router but for the tanh; of another width than experts, the router's own initial weights."""
    d_model, experts = centre_DE.shape
    if not router.hidden:
        return similarity_params(centre_DE)
    if router.hidden == experts:
        return {"in_DH": np.asarray(centre_DE), "out_HE": np.eye(experts, dtype=np.float32)}
    return {name: np.asarray(leaf) for name, leaf in router.init(key, d_model, experts).items()}


def measure(router: MoEfication, params: Params, x_TD: NDArray, activity_TE: NDArray) -> Fit:
    """What a router with these parameters finds of the activity of these tokens."""
    tokens, experts = activity_TE.shape
    chosen_TK = np.asarray(_chosen(router, params, jnp.asarray(x_TD, jnp.float32)))
    best_TK = np.argsort(-activity_TE, axis=-1, kind="stable")[:, : router.k]
    total = float(activity_TE.sum(dtype=np.float64)) or 1.0
    mine_TE, best_TE = np.zeros((2, tokens, experts), bool)
    np.put_along_axis(mine_TE, chosen_TK, True, -1)
    np.put_along_axis(best_TE, best_TK, True, -1)
    return Fit(
        captured=float(activity_TE[mine_TE].sum(dtype=np.float64)) / total,
        oracle=float(activity_TE[best_TE].sum(dtype=np.float64)) / total,
        uniform=router.k / experts,
        found=float((mine_TE & best_TE).sum()) / (tokens * router.k),
        tokens=tokens,
    )


def fit(
    router: MoEfication,
    params: Params,
    x_TD: NDArray,
    activity_TE: NDArray,
    *,
    epochs: int = 30,
    seed: int = 0,
) -> tuple[Params, Fit]:
    """Fits a router to a layer's activity; the parameters of the best epoch, and what they find.

    Adam at 0.01 on the binary cross-entropy of sigmoid scores, batches of 512 tokens, the last
    tenth of the tokens held out to choose the epoch by `captured`: the official code. One thing
    differs: a token's targets are its activities over *its own* largest one, not over the batch's.
    A few tokens of a language model have activations hundreds of times the others', beside which
    all other targets would be 0.

    Args:
      router: its rule.
      params: where to start (`first_params`).
      x_TD, activity_TE: inputs of the FFN and activities of its experts.
      epochs: passes over the tokens; 0 leaves the parameters as they are.
      seed: of the order of the tokens.
    """
    held = max(1, round(len(x_TD) * HELD_OUT))
    test_x, test_y = x_TD[-held:], activity_TE[-held:]
    best, best_fit = params, measure(router, params, test_x, test_y)
    x = jnp.asarray(x_TD[:-held], jnp.float32)
    largest_T1 = activity_TE[:-held].max(-1, keepdims=True)
    y = jnp.asarray(activity_TE[:-held] / np.where(largest_T1 > 0, largest_T1, 1.0), jnp.float32)
    if not len(x):
        return best, best_fit
    size = min(BATCH, len(x))
    random = np.random.default_rng(seed)
    state = _OPTIMIZER.init(params)
    for epoch in range(1, epochs + 1):
        order = random.permutation(len(x))[: len(x) // size * size].reshape(-1, size)
        params, state = _epoch(router, params, state, x, y, jnp.asarray(order))
        now = measure(router, params, test_x, test_y)
        if now.captured > best_fit.captured:
            best = {name: np.asarray(leaf) for name, leaf in params.items()}
            best_fit = dataclasses.replace(now, epochs=epoch)
    return best, best_fit


_OPTIMIZER = optax.adam(LEARNING_RATE)


@functools.partial(jax.jit, static_argnums=0)
def _epoch(
    router: MoEfication,
    params: Params,
    state: optax.OptState,
    x_TD: jax.Array,
    y_TE: jax.Array,
    order_NB: jax.Array,
) -> tuple[Params, optax.OptState]:
    def loss(params: Params, x_BD: jax.Array, y_BE: jax.Array) -> jax.Array:
        logits_BE = router.logits(x_BD, RouterInputs.of(len(x_BD)), params)
        return optax.sigmoid_binary_cross_entropy(logits_BE, y_BE).mean()

    def step(
        carry: tuple[Params, optax.OptState], rows_B: jax.Array
    ) -> tuple[tuple[Params, optax.OptState], None]:
        params, state = carry
        grads = jax.grad(loss)(params, x_TD[rows_B], y_TE[rows_B])
        updates, state = _OPTIMIZER.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, state), order_NB)
    return params, state


@functools.partial(jax.jit, static_argnums=0)
def _chosen(router: MoEfication, params: Params, x_TD: jax.Array) -> jax.Array:
    routing, _ = router(x_TD, RouterInputs.of(len(x_TD)), params, {})
    return routing.expert_TK
