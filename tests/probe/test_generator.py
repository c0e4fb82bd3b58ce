"""Texts are what the model says, whatever is written beside them."""

import dataclasses

import generation_samples as samples
import jax
import numpy as np
import pytest

from moejax.config import ConfigError
from moejax.probe.generation import Generator, Request, Sampling
from moejax.train.errors import NonFiniteError

END = frozenset({samples.EOS})
SAMPLED = Sampling(temperature=1.3, top_k=8, top_p=0.95, seed=3)


def generator(batch_size):
    return Generator(
        samples.model(),
        *samples.weights(),
        token_bytes=samples.token_bytes,
        pad_id=samples.PAD,
        batch_size=batch_size,
    )


def prompt(length, seed=0):
    return tuple(np.random.default_rng(seed).integers(0, 13, length).tolist())


REQUESTS = [
    Request(prompt(3), 12, SAMPLED),
    Request(prompt(9), 9, Sampling(temperature=0)),
    Request(prompt(3), 12, SAMPLED, sample=1),
    Request(prompt(20, seed=1), 14, dataclasses.replace(SAMPLED, top_k=2, seed=4)),
    Request(prompt(1), 4, Sampling(), stop_ids=frozenset(range(3, samples.VOCAB))),
]


@pytest.fixture(scope="module")
def pairs():
    """A generator of two rows, and what it wrote."""
    made = generator(2)
    pieces = [[] for _ in REQUESTS]
    completions = made.generate(REQUESTS, lambda number, text: pieces[number].append(text))
    return made, completions, ["".join(p) for p in pieces]


def test_what_is_written_is_what_the_model_says(pairs):
    _, completions, streamed = pairs
    for request, completion, text in zip(REQUESTS, completions, streamed, strict=True):
        ids = request.prompt + completion.tokens
        said = samples.whole(ids)[len(request.prompt) - 1 : -1]
        tokens = list(completion.tokens)
        np.testing.assert_allclose(completion.logprobs, said[range(len(tokens)), tokens], atol=1e-4)
        if request.sampling.temperature == 0:
            assert tokens == said.argmax(-1).tolist()
        if k := request.sampling.top_k:
            rank = (said > np.take_along_axis(said, np.array(tokens)[:, None], 1) + 1e-6).sum(-1)
            assert (rank < k).all()
        assert completion.text == text
        stopped = tokens[-1] in request.stop_ids
        assert completion.finish == ("stop_token" if stopped else "length")
        assert len(tokens) == request.max_new_tokens or stopped
        shown = tokens[:-1] if stopped else tokens
        assert text == b"".join(map(samples.token_bytes, shown)).decode(errors="replace")
    assert completions[0].tokens != completions[2].tokens  # another sample
    assert completions[4].finish == "stop_token"


def test_a_text_does_not_depend_on_its_batch(pairs):
    made, completions, _ = pairs
    order = [3, 0, 4, 2, 1]
    again = made.generate([REQUESTS[n] for n in order])
    for number, completion in zip(order, again, strict=True):
        assert_same(completion, completions[number])
    alone = generator(1)
    for number in (0, 3):
        assert_same(alone.generate([REQUESTS[number]])[0], completions[number])


def assert_same(completion, other):
    assert completion.tokens == other.tokens and completion.text == other.text
    np.testing.assert_allclose(completion.logprobs, other.logprobs, atol=1e-4)


def test_a_step_is_compiled_once(pairs):
    made, _, _ = pairs
    # Greedy and sampled rows of one batch, all lengths and stops: `greedy` and `cut` differ only.
    assert made._prefill._cache_size() == 1
    assert made._step._cache_size() <= 2


def test_stop_texts_end_a_text(pairs):
    made, completions, _ = pairs
    text = completions[0].text
    stop = text[3:5]
    first = text.index(stop)
    requests = [dataclasses.replace(REQUESTS[0], stops=("zzz", stop)), REQUESTS[2]]
    stopped, other = made.generate(requests)
    assert stopped.text == text[:first] and stopped.finish == "stop_text"
    assert len(stopped.tokens) < len(completions[0].tokens)
    assert_same(other, completions[2])


def test_logits_that_are_none_end_in_one_line():
    params, _ = samples.weights()
    broken = jax.tree.map(lambda leaf: leaf * np.nan, params)
    made = generator(2)
    made._params = broken
    with pytest.raises(NonFiniteError, match="not finite after 0 tokens") as refused:
        made.generate(REQUESTS[:2])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"prompt": ()}, "--prompt: has no token"),
        ({"prompt": (samples.VOCAB,)}, "token 18, outside the model's vocabulary of 18"),
        ({"prompt": (-1,)}, "token -1, outside"),
        ({"max_new_tokens": 0}, "--max_new_tokens=0: .* nearest valid value 1"),
        ({"prompt": (1,) * 150, "max_new_tokens": 51}, "nearest valid value --max_new_tokens=50"),
        ({"prompt": (1,) * 300}, "nearest valid: a prompt of 199 tokens at most"),
        ({"sampling": Sampling(top_p=2.0)}, "--top_p=2"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_compiled(changes, message):
    made = generator(2)
    with pytest.raises(ConfigError, match=message) as refused:
        made.generate([REQUESTS[0], dataclasses.replace(REQUESTS[0], **changes)])
    assert "\n" not in str(refused.value)
    assert not made._prefill._cache_size()


def test_nothing_is_written_for_nobody():
    assert generator(2).generate([]) == []
    with pytest.raises(ConfigError, match="--batch_size=0"):
        generator(0)
