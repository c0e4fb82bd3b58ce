"""What of an evaluation is kept token by token: rows from all over the text."""

from __future__ import annotations

import numpy as np
import pytest

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
