"""Evaluation batches: fixed order, one shape, labels of the input tokens."""

import numpy as np
import pytest

from moejax.config import ConfigError
from moejax.data import TOKEN_CLASSES, EvalStream

LABELS = {"token_class": "uint8", "frequency_rank": "int32", "domain": "uint8", "language": "uint8"}


def batches(dataset, **changes):
    values = {"batch_size": 4, "seq_len": 16} | changes
    return list(EvalStream(dataset, **values).batches())


def joined(found, key):
    return np.concatenate([batch[key] for batch in found])


def test_every_batch_has_one_shape_and_the_last_is_padded(story):
    found = batches(story)
    assert len(found) == len(EvalStream(story, batch_size=4, seq_len=16))
    for batch in found:
        assert {key: value.shape for key, value in batch.items()} == dict.fromkeys(batch, (4, 16))
        assert {key: batch[key].dtype.name for key in LABELS} == LABELS
    last = found[-1]
    padding = last["segment_ids"] == 0
    assert padding.any()
    for key in ("loss_mask", "positions", "token_class", "domain", "language"):
        assert (last[key][padding] == 0).all()
    assert (last["tokens"][padding] == story.tokenizer.pad_id).all()


def test_all_of_the_split_in_order(story):
    found = batches(story)
    tokens = joined(found, "tokens")[joined(found, "segment_ids") > 0]
    # The very last token is only ever a target.
    np.testing.assert_array_equal(tokens, story.validation.tokens[: len(tokens)])
    assert story.validation.num_tokens - len(tokens) in (0, 1)


def test_it_is_the_same_every_time(story):
    stream = EvalStream(story, batch_size=4, seq_len=16)
    for first, second in zip(stream.batches(), stream.batches(), strict=True):
        for key in first:
            np.testing.assert_array_equal(first[key], second[key])


def test_labels_are_those_of_the_input_token(story):
    found = batches(story)
    valid = joined(found, "segment_ids") > 0
    tokens = joined(found, "tokens")[valid]
    split = story.validation
    document = np.searchsorted(split.doc_ends, np.arange(len(tokens)), side="right")
    np.testing.assert_array_equal(joined(found, "domain")[valid], split.doc_domain[document])
    classes = joined(found, "token_class")[valid]
    np.testing.assert_array_equal(classes, split.token_class[: len(tokens)])
    np.testing.assert_array_equal(
        joined(found, "token_class") == TOKEN_CLASSES.index("special"),
        (joined(found, "tokens") == story.tokenizer.eos_id) | ~valid,
    )
    ranks = joined(found, "frequency_rank")
    np.testing.assert_array_equal(ranks, story.frequency_rank_V[joined(found, "tokens")])


def test_frequency_ranks_are_a_permutation_by_count(story):
    order = np.argsort(story.frequency_rank_V)
    counts = story.token_count_V[order]
    assert (np.diff(counts) <= 0).all()
    assert sorted(story.frequency_rank_V) == list(range(story.vocab_size))
    assert story.token_count_V.sum() == story.train.num_tokens


def test_a_part_takes_windows_from_everywhere(small):
    total = small.validation.num_windows(32)
    part = EvalStream(small, batch_size=4, seq_len=32, max_tokens=20 * 32)
    assert len(part.windows) == 20
    assert len(set(part.windows)) == 20
    assert part.windows[-1] >= total - total // 20 - 1
    domains = joined(list(part.batches()), "domain")
    assert set(np.unique(domains)) == {0, 1, 2}


@pytest.mark.parametrize("max_tokens, windows", [(1, 1), (16, 1), (47, 2), (10**9, None)])
def test_max_tokens_is_in_whole_windows(story, max_tokens, windows):
    stream = EvalStream(story, batch_size=4, seq_len=16, max_tokens=max_tokens)
    assert len(stream.windows) == (windows or story.validation.num_windows(16))


def test_processes_together_see_the_global_batches(story):
    stream = EvalStream(story, batch_size=4, seq_len=16)
    halves = zip(stream.batches(slice(2)), stream.batches(slice(2, 4)), strict=True)
    for whole, (first, second) in zip(stream.batches(), halves, strict=True):
        for key in whole:
            np.testing.assert_array_equal(np.concatenate([first[key], second[key]]), whole[key])


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"max_tokens": -1}, "max_tokens=-1"),
        ({"seq_len": 10**6}, "the validation split has .* fewer than one window"),
    ],
)
def test_bad_arguments(story, change, reason):
    with pytest.raises(ConfigError, match=reason):
        batches(story, **change)
