"""Drawing the next token: against rules written out token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.config import ConfigError
from moejax.probe.generation import Sampling
from moejax.probe.generation.sampling import allowed, draw, stack_draws, text_key

VOCAB = 9


def draws(*samplings):
    return stack_draws(samplings, [text_key(s.seed, np.arange(3), 0) for s in samplings])


def slowly_allowed(logits, sampling):
    """The tokens that may be drawn, one after the other from the most probable."""
    order = sorted(range(len(logits)), key=lambda v: (-logits[v], v))
    kept = order[: sampling.top_k] if sampling.top_k else order
    scaled = np.array([logits[v] / sampling.temperature for v in kept], np.float64)
    weight = np.exp(scaled - scaled.max())
    found, mass = [], 0.0
    for v, w in zip(kept, weight / weight.sum(), strict=True):
        if sampling.top_p < 1 and mass >= sampling.top_p:
            break
        found.append(v)
        mass += w
    return found


SAMPLINGS = [
    Sampling(temperature, top_k, top_p)
    for temperature in (0.3, 1.0, 4.0)
    for top_k in (0, 1, 4, 20)
    for top_p in (1e-6, 0.3, 0.8, 1.0)
]


def test_top_k_and_top_p_leave_what_the_rule_leaves():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(len(SAMPLINGS), VOCAB)).astype(np.float32)
    logits[::3] = np.round(logits[::3])  # equals
    logits[1] = 0
    got = np.asarray(jax.jit(allowed)(logits, draws(*SAMPLINGS)))
    for row, sampling in enumerate(SAMPLINGS):
        assert set(np.flatnonzero(got[row])) == set(slowly_allowed(logits[row], sampling)), sampling


def test_tokens_come_as_often_as_their_probabilities_say():
    logits = np.array([1.0, 0.0, -1.0, 2.0, 1.5, -4.0, 0.5, 0.2, 0.9], np.float32)
    sampling, count = Sampling(temperature=0.7, top_k=6, top_p=0.9), 4000
    repeated = jax.tree.map(lambda a: jnp.repeat(a, count, axis=0), draws(sampling))
    rows = jnp.broadcast_to(logits, (count, VOCAB))
    run = jax.jit(draw, static_argnames=("greedy", "cut"))
    tokens, logprobs = run(rows, jnp.arange(count), repeated, greedy=False, cut=True)
    kept = slowly_allowed(logits, sampling)
    weight = np.exp(logits[kept].astype(np.float64) / 0.7)
    weight /= weight.sum()
    seen = np.bincount(tokens, minlength=VOCAB)
    assert seen.sum() == seen[kept].sum() == count
    chi_square = ((seen[kept] - count * weight) ** 2 / (count * weight)).sum()
    assert chi_square < 30  # 4 degrees of freedom: beyond it once in 200 000 seeds
    # Log-probabilities are the model's own, whatever was cut.
    own = logits - np.log(np.exp(logits.astype(np.float64)).sum())
    np.testing.assert_allclose(logprobs, own[np.asarray(tokens)], atol=1e-6)


def test_extremes():
    """One program: greedy rows, a temperature next to 0, and logits that are none."""
    logits = np.tile(np.float32([0, 5, 5, 1]), (5, 1))
    logits[3, 2], logits[4, 0] = np.nan, np.inf
    ways = (
        Sampling(temperature=0),
        Sampling(temperature=1e-30),
        Sampling(),
        Sampling(),
        Sampling(),
    )
    run = jax.jit(draw, static_argnames=("greedy", "cut"))
    tokens, logprobs = run(logits, jnp.zeros(5, jnp.int32), draws(*ways), greedy=False, cut=False)
    assert tokens[0] == 1 and tokens[1] in (1, 2)
    assert tokens[3] == -1 and tokens[4] == -1
    assert np.isfinite(logprobs[:3]).all()


def test_random_numbers_are_of_the_text():
    prompt = np.arange(5)
    keys = [
        text_key(*given)
        for given in ((0, prompt, 0), (1, prompt, 0), (0, prompt + 1, 0), (0, prompt, 1))
    ]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 4
    same = text_key(0, prompt.astype(np.int64), 0)
    np.testing.assert_array_equal(jax.random.key_data(same), jax.random.key_data(keys[0]))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"temperature": -0.1}, "--temperature=-0.1: .* nearest valid value 0"),
        ({"temperature": float("nan")}, "--temperature=nan"),
        ({"temperature": float("inf")}, "--temperature=inf"),
        ({"top_k": -1}, "--top_k=-1"),
        ({"top_p": 0.0}, "--top_p=0: .* nearest valid value 0.01"),
        ({"top_p": 1.5}, "--top_p=1.5: .* nearest valid value 1"),
        ({"top_p": float("nan")}, "--top_p=nan"),
        ({"seed": -3}, "--seed=-3: .* nearest valid value 0"),
        ({"seed": 1 << 40}, "--seed="),
    ],
)
def test_numbers_out_of_range_are_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as refused:
        Sampling(**changes).validate()
    assert "\n" not in str(refused.value)
