"""Problems for the native kernel; run as a program, many calls at once that must give equal bits.

Prints a line of JSON: Python threads, calls, results that differ from the first, and the kernel's
scratch before and after.
"""

import dataclasses
import json
import threading

import jax
import jax.numpy as jnp
import numpy as np

from moejax.experts import ExpertsSpec, expert_ffn, init_weights
from moejax.routing import Routing


def problem(case, table=None, activation="swiglu", rows_per_token=0.0):
    """Arguments of the battery's `graded` programs, and the spec.

    Args:
      case: widths, tokens, D, slots.
      table: who is chosen; default: distinct experts at random, some slots empty.
    """
    widths, tokens, dim, slots = case
    experts = len(widths)
    rng = np.random.default_rng(0)
    chosen = rng.random((tokens, experts)).argsort(-1)[:, :slots].astype(np.int32)
    chosen[rng.random(chosen.shape) < 0.2] = experts
    if table is not None:
        chosen[:] = experts
    if table == "all_on_one":
        chosen[:, -1] = 0
    if table == "out_of_range":  # whoever they are, they are not ours (expert parallelism)
        chosen[:] = rng.choice([0, experts, experts + 5, 2**31 - 1], chosen.shape)
        chosen[:, 1:] = experts + 1
    spec = ExpertsSpec(widths, 1, activation, "native", rows_per_token=rows_per_token)
    weights = init_weights(jax.random.key(1), spec, dim, jnp.dtype("float32"))
    x_TD, dy_TD = jax.random.normal(jax.random.key(2), (2, tokens, dim))
    weight_TK = jnp.where(chosen < experts, rng.uniform(0.1, 1, chosen.shape), 0)
    weight_TK = weight_TK.astype(jnp.float32)
    requested_T = jnp.asarray((chosen < experts).sum(-1), jnp.int32)
    routing = Routing(jnp.asarray(chosen), weight_TK, requested_T, None, None, experts, chosen.size)
    return (x_TD, weight_TK, weights, routing, dy_TD), spec


def main():
    """Four threads call at once, then eight devices, then both."""
    from moejax.experts.native import load

    args, spec = problem(((64, 160, 33, 256), 900, 96, 2))

    def loss(x_TD, weight_TK, weights, routing, dy_TD):
        routing = dataclasses.replace(routing, weight_TK=weight_TK)
        return (expert_ffn(x_TD, routing, weights, spec)[0] * dy_TD).sum()

    slopes = jax.jit(jax.grad(loss, (0, 1, 2)))
    on = [jax.device_put(args, device) for device in jax.devices()]
    first = [np.asarray(leaf) for leaf in jax.tree.leaves(slopes(*args))]
    different, calls = [], []

    def compare(results):
        for got in results:
            leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(got)]
            calls.append(1)
            same = all(np.array_equal(a, b) for a, b in zip(leaves, first, strict=True))
            different.append(not same)

    def caller():
        for _ in range(6):
            compare([slopes(*args)])

    def everywhere():
        for _ in range(3):
            compare([slopes(*own) for own in on])  # eight at once: calls return before they end

    everywhere()
    before = load().scratch().held
    threads = [threading.Thread(target=caller) for _ in range(4)]
    for thread in threads:
        thread.start()
    everywhere()
    for thread in threads:
        thread.join()
    said = {"threads": len(threads), "calls": len(calls), "different": int(sum(different))}
    print(json.dumps(said | {"held_before": before, "held_after": load().scratch().held}))


if __name__ == "__main__":
    main()
