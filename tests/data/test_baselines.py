"""Unigram and bigram: proper distributions, known values, the right positions."""

import math

import numpy as np
import pytest

from moejax.data import EvalStream
from moejax.data import baselines as b


def counted(tokens, ends, vocab_size):
    tokens, ends = np.array(tokens, np.uint16), np.array(ends)
    return b.count_tokens(tokens, vocab_size), b.count_pairs(tokens, ends, vocab_size)


@pytest.fixture
def random_text(rng):
    # Ids 17..19 never occur, and many pairs do not.
    return rng.integers(0, 17, 3000) % 13, np.array([700, 701, 1500, 3000])


def test_both_sum_to_one_for_every_context(random_text):
    counts, pairs = counted(*random_text, 20)
    unigram = b.unigram(counts)
    assert unigram.sum() == pytest.approx(1.0, abs=1e-12)
    assert (unigram > 0).all()
    previous, token = np.divmod(np.arange(400), 20)
    table = b.Bigram(pairs, unigram)(previous, token).reshape(20, 20)
    np.testing.assert_allclose(table.sum(1), 1.0, atol=1e-12)
    assert (table > 0).all()


def test_known_values():
    # One document: 0 1 0 1 0 2(EOS); V = 4.
    counts, pairs = counted([0, 1, 0, 1, 0, 2], [6], 4)
    assert counts.tolist() == [3, 2, 1, 0]
    unigram = b.unigram(counts)
    np.testing.assert_allclose(unigram, [0.4, 0.3, 0.2, 0.1])
    # 0 is followed by 1, 1, 2: three times, two kinds. p(1|0) = (2 + 2 * 0.3) / (3 + 2).
    found = b.Bigram(pairs, unigram)(np.array([0, 0, 1, 3]), np.array([1, 3, 0, 3]))
    np.testing.assert_allclose(found, [0.52, 0.04, (2 + 0.4) / 3, 0.1])
    result = b.cross_entropies([(np.array([0, 1]), np.array([1, 0]))], counts, pairs)
    assert result["unigram"] == pytest.approx(-(math.log(0.3) + math.log(0.4)) / 2)
    assert result["bigram"] == pytest.approx(-(math.log(0.52) + math.log(0.8)) / 2)
    assert result["positions"] == 2


def test_pairs_end_with_the_document():
    _, pairs = counted([0, 2, 1, 2], [2, 4], 3)
    assert dict(zip(pairs.key.tolist(), pairs.count.tolist(), strict=True)) == {2: 1, 5: 1}


def test_tables_sorting_and_chunks_agree(random_text, monkeypatch):
    expected = counted(*random_text, 20)
    for cells, chunk in ((1 << 24, 64), (0, 64), (0, 1 << 22)):
        monkeypatch.setattr(b, "_TABLE_CELLS", cells)
        monkeypatch.setattr(b, "_CHUNK", chunk)
        counts, pairs = counted(*random_text, 20)
        np.testing.assert_array_equal(counts, expected[0])
        np.testing.assert_array_equal(pairs.key, expected[1].key)
        np.testing.assert_array_equal(pairs.count, expected[1].count)
        assert pairs.count.sum() == 3000 - 4


@pytest.mark.parametrize("seq_len", [16, 33, 64])
def test_the_validation_split_and_its_batches_agree(story, seq_len):
    whole = story.manifest["baselines"]
    found = EvalStream(story, batch_size=4, seq_len=seq_len).baselines()
    assert found["positions"] == whole["positions"]
    assert found["unigram"] == pytest.approx(whole["unigram"], rel=1e-12)
    assert found["bigram"] == pytest.approx(whole["bigram"], rel=1e-12)


def test_positions_are_those_of_the_loss_mask(story):
    split = story.validation
    assert story.manifest["baselines"]["positions"] == split.num_tokens - split.num_documents
    part = EvalStream(story, batch_size=3, seq_len=16, max_tokens=64)
    masks = [batch["loss_mask"].sum() for batch in part.batches()]
    assert part.baselines()["positions"] == sum(masks)


def test_bigram_is_better_than_unigram_on_real_text(small):
    found = small.manifest["baselines"]
    assert 2.0 < found["bigram"] < found["unigram"] < 4.0


def test_info_has_what_the_report_reads(small):
    part = EvalStream(small, batch_size=2, seq_len=32, max_tokens=640).baselines()
    info = small.info(part)
    assert info["baselines"]["unigram"] == part["unigram"]
    assert "Witten-Bell" in info["baselines"]["convention"]
    assert info["domains"] == ["drama", "scripture", "code"]
    assert info["languages"] == ["en", "python"]
    assert info["splits"]["train"]["bytes"] == small.train.num_bytes
    assert info["bytes_per_token"] == {"train": 1.0, "validation": 1.0}
    assert info["vocab_size"] == 258
    assert small.info()["baselines"]["positions"] == (
        small.validation.num_tokens - small.validation.num_documents
    )
