"""What of an evaluation is kept token by token: rows from all over the text."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import standin

from moejax.data import DataConfig, Dataset
from moejax.train import run
from moejax.train.evaluate import EvaluationConfig, _join, traced_rows
from moejax.train.step import _rows_of


@pytest.mark.parametrize(
    "rows, limit, expected",
    [
        (4, 8, [0, 2]),
        (4, 11, [0, 2]),  # whole rows only
        (4, 12, [0, 1, 2]),
        (4, 99, [0, 1, 2, 3]),
        (9, 12, [0, 3, 6]),
        (2, 3, [0]),  # a row longer than the limit; it is cut
        (4, 0, []),
        (0, 5, []),
    ],
)
def test_rows_at_equal_distances(rows: int, limit: int, expected: list[int]) -> None:
    assert np.flatnonzero(traced_rows(rows, 4, limit)).tolist() == expected


def test_arrays_keep_their_axes() -> None:
    pieces = [
        {
            "token_T": np.arange(4) + 4 * i,
            "expert_LTK": np.full((2, 4, 1), i),
            "layers_L": np.ones(2),
        }
        for i in range(3)
    ]
    joined = _join(pieces, 6)
    assert joined["token_T"].tolist() == [0, 1, 2, 3, 4, 5]
    assert joined["expert_LTK"].shape == (2, 6, 1) and joined["layers_L"].shape == (2,)


@pytest.mark.parametrize("limit, expected", [(0, 0), (3, 1), (4, 1), (11, 2), (99, 5)])
def test_a_batch_never_holds_more_traced_rows_than_it_is_made_for(
    limit: int, expected: int
) -> None:
    config = EvaluationConfig(batch_size=5, trace_tokens=limit)
    assert config.traced_rows(4) == expected
    for num_rows in range(1, 40):
        chosen_R = np.pad(traced_rows(num_rows, 4, limit), (0, -num_rows % 5))
        assert chosen_R.reshape(-1, 5).sum(1).max() <= expected


def test_the_trace_of_some_rows() -> None:
    expert_LTK = np.arange(2 * 6 * 3).reshape(2, 6, 3)
    some = _rows_of({"expert_LTK": (expert_LTK,), "nll_BS": np.eye(3, 2)}, np.asarray([2, 0]))
    assert some["expert_LTK"][0].tolist() == expert_LTK[:, [4, 5, 0, 1]].tolist()
    assert some["nll_BS"].tolist() == np.eye(3, 2)[[2, 0]].tolist()


def test_what_is_traced_changes_nothing_else(
    text: tuple[DataConfig, Dataset], tmp_path: Path
) -> None:
    """No trace, some rows and all of them, over two batches: the same loss, and the same tokens."""
    losses, traces = [], {}
    for limit in (0, 64, 1000):
        config = standin.experiment(text[0], steps=5)
        evaluation = dataclasses.replace(config.evaluation, trace_tokens=limit)
        config = dataclasses.replace(config, evaluation=evaluation)
        where = tmp_path / str(limit)
        model = standin.standin(config)
        losses.append(run(config, where, dataset=text[1], model=model).final["eval"]["loss"])
        if limit:
            traces[limit] = dict(np.load(where / "trace/5.npz"))
    assert losses[0] == losses[1] == losses[2]
    assert not (tmp_path / "0/trace").exists()
    some, whole = traces[64], traces[1000]
    scored_T = whole["loss_T"] != 0  # the stand-in's loss of a token without a target
    assert whole["loss_T"][scored_T].mean() == pytest.approx(losses[0], rel=1e-6)
    for name in ("token_T", "loss_T", "expert_LTK"):
        axis = name.rpartition("_")[2].index("T")
        rows = np.split(whole[name], 8, axis)
        np.testing.assert_array_equal(some[name], np.concatenate(rows[::2], axis), err_msg=name)
