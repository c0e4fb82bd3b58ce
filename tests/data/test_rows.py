"""Windows over concatenated documents: segments, positions, masks."""

from pathlib import Path

import numpy as np
import pytest

from moejax.config import ConfigError
from moejax.data.dataset import Split
from moejax.data.rows import build_rows

PAD = 99


def split_of(lengths, vocab_size=100):
    """Tokens count up from 0, so that a token is its own place."""
    ends = np.cumsum(lengths)
    total = int(ends[-1])
    zeros = np.zeros(len(lengths), np.uint8)
    return Split(
        name="train",
        file=Path("train.tokens.bin"),
        tokens=np.arange(total, dtype=np.uint16),
        token_class=np.zeros(total, np.uint8),
        doc_ends=ends,
        doc_domain=zeros,
        doc_language=zeros,
        doc_bytes=np.array(lengths),
        vocab_size=vocab_size,
    )


def rows(lengths, seq_len, windows):
    split = split_of(lengths)
    return build_rows(split, np.array(windows), seq_len, PAD)


def test_known_rows():
    # Documents at 0-2, 3-3, 4-10; windows of 4.
    found = rows([3, 1, 7], 4, [0, 1, 2])
    assert found["tokens"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, PAD]]
    assert found["targets"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, PAD, PAD]]
    assert found["segment_ids"].tolist() == [[1, 1, 1, 2], [1, 1, 1, 1], [1, 1, 1, 0]]
    assert found["positions"].tolist() == [[0, 1, 2, 0], [0, 1, 2, 3], [0, 1, 2, 0]]
    assert found["loss_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]]


def test_a_row_of_padding():
    found = rows([3, 1, 7], 4, [-1])
    assert found["tokens"].tolist() == [[PAD] * 4]
    assert found["targets"].tolist() == [[PAD] * 4]
    for key in ("segment_ids", "positions", "loss_mask"):
        assert found[key].tolist() == [[0] * 4]


@pytest.mark.parametrize("seq_len", [1, 2, 5, 11, 30])
def test_against_a_slow_reading(rng, seq_len):
    lengths = rng.integers(1, 9, 12).tolist()
    split = split_of(lengths)
    document = np.repeat(np.arange(12), lengths)
    count = split.num_windows(seq_len)
    assert count == -(-(split.num_tokens - 1) // seq_len)
    found = build_rows(split, np.arange(count), seq_len, PAD)
    for w in range(count):
        segment, place = 1, 0
        for s in range(seq_len):
            at = w * seq_len + s
            if s and at < split.num_tokens and document[at] != document[at - 1]:
                segment, place = segment + 1, 0
            cell = {key: found[key][w, s] for key in found}
            if at >= split.num_tokens:
                assert (cell["tokens"], cell["segment_ids"], cell["loss_mask"]) == (PAD, 0, 0)
                continue
            assert (cell["tokens"], cell["segment_ids"], cell["positions"]) == (at, segment, place)
            follows = at + 1 < split.num_tokens
            assert cell["targets"] == (at + 1 if follows else PAD)
            assert cell["loss_mask"] == (follows and document[at + 1] == document[at])
            place += 1
    masked = found["loss_mask"].sum()
    assert masked == split.num_tokens - split.num_documents


def test_an_id_outside_the_vocabulary_is_named():
    split = split_of([3, 4, 5], vocab_size=9)
    build_rows(split, np.array([0]), 8, PAD)
    with pytest.raises(ConfigError) as caught:
        build_rows(split, np.array([1]), 8, PAD)
    message = str(caught.value)
    assert message.startswith("train.tokens.bin: token 11 (document 2) has the id 11, outside the")


def test_a_split_shorter_than_a_window():
    assert split_of([5]).num_windows(4) == 1
    with pytest.raises(ConfigError) as caught:
        split_of([5]).num_windows(5)
    assert "has 5 tokens, fewer than one window of seq_len + 1 = 6; nearest valid seq_len: 4" in (
        str(caught.value)
    )
