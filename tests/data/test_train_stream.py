"""batch(step) is a function of (seed, step) alone, for any number of processes."""

import grain
import numpy as np
import pytest

from moejax.config import ConfigError
from moejax.data import TrainStream, stream
from moejax.data.rows import build_rows

KEYS = ["loss_mask", "positions", "segment_ids", "targets", "tokens"]


def make(dataset, seed=0, batch_size=4, seq_len=16):
    return TrainStream(dataset, seed=seed, batch_size=batch_size, seq_len=seq_len)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_shapes_and_types(story):
    batch = make(story).batch(0)
    assert sorted(batch) == KEYS
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        "tokens": ((4, 16), "int32"),
        "targets": ((4, 16), "int32"),
        "segment_ids": ((4, 16), "int32"),
        "positions": ((4, 16), "int32"),
        "loss_mask": ((4, 16), "float32"),
    }


def test_the_same_seed_and_step_give_the_same_batch(story):
    first, second = make(story, seed=5), make(story, seed=5)
    for step in (7, 0, 10**6, 3):
        assert_same(first.batch(step), second.batch(step))


def test_seeds_and_epochs_give_other_orders(story):
    epoch = make(story).windows_per_epoch
    orders = {}
    for seed in range(2):
        one = make(story, seed=seed, batch_size=1)
        for turn in range(3):
            steps = range(turn * epoch, (turn + 1) * epoch)
            rows = [tuple(one.batch(step)["tokens"][0].tolist()) for step in steps]
            orders[seed, turn] = tuple(rows)
    # Also across seeds: epoch 1 of seed 0 is not epoch 0 of seed 1.
    assert len(set(orders.values())) == 6
    # Each epoch shows each window once.
    assert len({tuple(sorted(rows)) for rows in orders.values()}) == 1


def test_one_sequence_per_step_is_streamed_like_any_other(story):
    """An endless order of batches of one is longer than Python's len can say."""
    one, four = make(story, batch_size=1), make(story, batch_size=4)
    for step, batch in one.iterate(start_step=5):
        np.testing.assert_array_equal(batch["tokens"][0], four.batch(step // 4)["tokens"][step % 4])
        if step == 9:
            break


def test_an_epoch_shows_every_target_once(story):
    train, one = story.train, make(story, batch_size=1, seq_len=33)
    batches = [one.batch(step) for step in range(one.windows_per_epoch)]
    seen = np.concatenate([b["targets"][b["loss_mask"] > 0] for b in batches])
    assert len(seen) == train.num_tokens - train.num_documents
    inside = np.ones(train.num_tokens, bool)
    inside[np.concatenate([[0], train.doc_ends[:-1]])] = False
    np.testing.assert_array_equal(np.sort(seen), np.sort(train.tokens[inside]))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_see_the_global_batch(story, count):
    whole = make(story)
    epoch = whole.windows_per_epoch
    assert epoch % 4, "choose a batch size that makes a batch straddle two epochs"
    for step in [0, 1, epoch // 4, epoch // 4 + 1, 1234567]:
        shares = np.arange(4).reshape(count, -1)
        parts = [make(story).batch(step, rows) for rows in shares]
        joined = {key: np.concatenate([part[key] for part in parts]) for key in KEYS}
        assert_same(joined, whole.batch(step))


@pytest.mark.parametrize("how", ["batch", "iterate"])
def test_a_process_reads_only_its_rows(story, monkeypatch, how):
    read = []

    def counting(split, window, *rest):
        read.extend(window.tolist())
        return build_rows(split, window, *rest)

    def mine(index):
        read.clear()
        if how == "batch":
            make(story).batch(2, np.asarray([2 * index, 2 * index + 1]))
        else:
            monkeypatch.setattr(stream, "_PREFETCH", 0)
            rows = make(story).iterate(2, np.asarray([2 * index, 2 * index + 1]))
            next(rows)
            rows.close()
        return list(read)

    monkeypatch.setattr(stream, "build_rows", counting)
    halves = mine(0), mine(1)
    assert [len(half) for half in halves] == [2, 2]
    order = grain.MapDataset.range(make(story).windows_per_epoch).seed(0).shuffle().repeat()
    assert halves[0] + halves[1] == [order[i] for i in range(8, 12)]


def test_iterating_is_seeking(story):
    it = make(story).iterate(start_step=37)
    for expected in range(37, 60):
        step, batch = next(it)
        assert step == expected
        assert_same(batch, make(story).batch(step))
    it.close()


def test_an_error_in_the_thread_reaches_the_caller(story, monkeypatch):
    def broken(*arguments):
        raise ConfigError("tokens.bin: damaged")

    monkeypatch.setattr(stream, "build_rows", broken)
    with pytest.raises(ConfigError, match=r"tokens\.bin: damaged"):
        next(make(story).iterate())


def test_the_order_is_the_recorded_one(story):
    """grain's shuffle is part of a run's identity: another order would break exact resume."""
    order = grain.MapDataset.range(1000).seed(7).shuffle().repeat()
    assert [order[i] for i in (0, 1, 2, 1000, 1001, 10**9)] == [668, 84, 161, 186, 373, 198]


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"batch_size": 0}, "batch_size=0: must be >= 1"),
        ({"seed": -1}, "seed=-1: must be in"),
        ({"seed": 2**32}, "must be in"),
        ({"seq_len": 10**6}, "fewer than one window of seq_len"),
    ],
)
def test_bad_arguments(story, change, reason):
    with pytest.raises(ConfigError, match=reason):
        make(story, **change)


def test_bad_steps(story):
    with pytest.raises(ConfigError, match="step=-1"):
        make(story).batch(-1)
