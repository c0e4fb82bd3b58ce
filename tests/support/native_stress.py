"""Problems for the native kernel; run as a program, many calls at once that must give equal bits.

Prints a line of JSON: tensors of the first result that were held to `loop`, the most parts of an
expert's backward pass, Python threads, calls, results that differ from the first, and the kernel's
scratch before and after.
"""

import dataclasses
import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
from ffn_battery import TOLERANCE, agree

from moejax.experts import ExpertsSpec, expert_ffn, init_weights
from moejax.experts.native import Unavailable, load
from moejax.routing import Routing


def must(have, *args):
    """`have(*args)`, which needs a kernel or a compiler; without one fails and says why."""
    try:
        return have(*args)
    except Unavailable as reason:
        raise AssertionError(f"this test needs the native kernel: {reason}") from reason


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
    """One call is held to the oracle; then eight devices call at once, then four threads too."""
    args, spec = problem(((64, 160, 33, 256), 900, 96, 2))

    def program(spec):
        def loss(x_TD, weight_TK, weights, routing, dy_TD):
            routing = dataclasses.replace(routing, weight_TK=weight_TK)
            y_TD, _ = expert_ffn(x_TD, routing, weights, spec)
            return (y_TD * dy_TD).sum(), y_TD

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))

    slopes = program(spec)
    on = [jax.device_put(args, device) for device in jax.devices()]
    result = jax.device_get(slopes(*args))
    first = jax.tree.leaves(result)
    (want_dx, want_dweight, want_dweights), want_y = jax.device_get(
        program(dataclasses.replace(spec, backend="loop"))(*args)
    )
    want_dweight = np.where(args[3].filled_TK, want_dweight, 0)  # of an empty slot: nobody's
    wanted = jax.tree.leaves(((want_dx, want_dweight, want_dweights), want_y))
    for (path, got), want in zip(jax.tree.leaves_with_path(result), wanted, strict=True):
        agree(jax.tree_util.keystr(path), got, want, TOLERANCE["float32"])
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
    said = {"equal_to_loop": len(wanted), "most_parts": load().most_parts()}
    said |= {"threads": len(threads), "calls": len(calls), "different": int(sum(different))}
    print(json.dumps(said | {"held_before": before, "held_after": load().scratch().held}))


if __name__ == "__main__":
    main()
