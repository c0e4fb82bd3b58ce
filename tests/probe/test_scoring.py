"""Log-likelihoods against one text, one token at a time."""

import generation_samples as samples
import numpy as np
import pytest

from moejax.config import ConfigError
from moejax.data.tokenizer.bpe import BpeTokenizer, byte_of_character
from moejax.data.tokenizer.byte import ByteTokenizer
from moejax.probe.scoring import Scorer, Span, encode_pair, rolling_spans


def scorer(batch_size, max_length=40):
    return Scorer(
        samples.model(),
        *samples.weights(),
        batch_size=batch_size,
        max_length=max_length,
        pad_id=samples.PAD,
    )


@pytest.fixture(scope="module")
def four():
    return scorer(4)


def draw(rng, length):
    return tuple(rng.integers(0, samples.VOCAB, length).tolist())


def slowly(span, max_length=40):
    row = (*span.before, *span.scored)[-(max_length + 1) :]
    said = samples.whole(row[:-1])
    places = range(len(row) - 1 - len(span.scored), len(row) - 1)
    logprobs = [said[place, row[place + 1]] for place in places]
    greedy = all(said[place].argmax() == row[place + 1] for place in places)
    return np.array(logprobs), greedy


@pytest.fixture(scope="module")
def spans():
    rng = np.random.default_rng(2)
    lengths = [(1, 1), (5, 3), (1, 20), (29, 2), (2, 1), (60, 7), (3, 40)]
    found = [Span(draw(rng, before), draw(rng, after)) for before, after in lengths]
    # What greedy decoding would write, and the same with another end.
    best = list(draw(rng, 4))
    for _ in range(3):
        best.append(int(samples.whole(best)[-1].argmax()))
    found.append(Span(tuple(best[:4]), tuple(best[4:])))
    found.append(Span(tuple(best[:4]), (*best[4:6], (best[6] + 1) % samples.VOCAB)))
    return found


def test_scores_are_those_of_each_text_alone(spans, four):
    scores = four.score(spans)
    alone = scorer(1)
    for number, (span, score) in enumerate(zip(spans, scores, strict=True)):
        want, greedy = slowly(span)
        np.testing.assert_allclose(score.logprob_N, want, atol=1e-4)
        assert score.total == pytest.approx(want.sum(), abs=1e-3)
        assert score.greedy == greedy
        if number in (1, 4, 7):  # one shape of the batch of one
            single = alone.score([span])[0]
            np.testing.assert_allclose(single.logprob_N, score.logprob_N, atol=1e-5)
    assert scores[-2].greedy and not scores[-1].greedy
    backwards = four.score(spans[::-1])[::-1]
    for score, other in zip(scores, backwards, strict=True):
        np.testing.assert_allclose(other.logprob_N, score.logprob_N, atol=1e-5)


def test_progress_and_nothing_to_score(spans, four):
    told = []
    assert four.score([]) == []
    four.score(spans[:5], lambda done, of: told.append((done, of)))
    assert told == [(4, 5), (5, 5)]


@pytest.mark.parametrize(
    "span, message",
    [
        (Span((), (1,)), "a token before it"),
        (Span((1,), ()), "one to score"),
        (Span((1,), (1,) * 41), "41 tokens to score are more than the 40"),
        (Span((1,), (samples.VOCAB,)), "token 18: outside the model's vocabulary of 18"),
    ],
)
def test_what_cannot_be_scored_is_one_line(span, message):
    with pytest.raises(ConfigError, match=message):
        scorer(4).score([span])


def test_lengths_beyond_the_model_are_refused():
    with pytest.raises(ConfigError, match=r"--max_length=201: .* nearest valid value 200"):
        scorer(4, max_length=201)
    assert scorer(4, max_length=0).max_length == 200


@pytest.mark.parametrize("length", [0, 1, 4, 5, 8, 9, 11, 12, 13])
def test_windows_score_every_token_once_with_all_the_context_that_fits(length):
    ids, first, longest = list(range(100, 100 + length)), 7, 4
    whole = [first, *ids]
    scored = []
    for number, span in enumerate(rolling_spans(ids, first, longest)):
        read = len(span.before) + len(span.scored) - 1
        place = len(scored) + 1
        assert list(span.before) == whole[place - len(span.before) : place]
        assert read == longest or (number == 0 and length < longest)
        scored += span.scored
    assert scored == ids


def test_white_space_before_a_continuation_belongs_to_it():
    tokenizer = ByteTokenizer()

    def texts(*given):
        return tuple(bytes(part).decode() for part in encode_pair(tokenizer, *given))

    assert texts("a b ", "c") == ("a b", " c")
    assert texts("a\n", " c") == ("a", "\n c")
    assert texts("", " c") == ("", " c")
    assert texts("  ", "c") == ("", "  c")


def test_a_continuation_inside_a_token_of_the_context_is_encoded_alone():
    letters = sorted(byte_of_character())
    tokens = [*letters, "ab", "abc"]
    tokenizer = BpeTokenizer(len(tokens) + 2, [("a", "b"), ("ab", "c")], tokens)
    ab, abc, c = tokens.index("ab"), tokens.index("abc"), tokens.index("c")
    assert encode_pair(tokenizer, "ab", "c") == ((ab,), (c,))  # together they are one token
    assert abc in tokenizer.encode("abc")
    # One more token than the context has; the first is another one, as the Harness has it.
    assert encode_pair(tokenizer, "ab", "cc") == ((ab,), (c,))
