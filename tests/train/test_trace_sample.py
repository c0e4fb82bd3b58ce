"""What of an evaluation is kept token by token: rows from all over the text."""

from __future__ import annotations

import numpy as np
import pytest

from moejax.train.evaluate import _join, _sample


@pytest.mark.parametrize(
    "lengths, limit, expected",
    [
        ([4, 4, 4, 4], 8, [0, 1, 2, 3, 8, 9, 10, 11]),  # every other row
        ([4, 4, 4, 4], 16, list(range(16))),
        ([4, 4, 4, 4], 99, list(range(16))),
        ([4, 0, 4, 0], 4, [0, 1, 2, 3]),  # rows of padding are no rows
        ([4, 4], 3, [0, 1, 2]),  # a row longer than the limit is cut
        ([0, 0], 5, []),
    ],
)
def test_rows_at_equal_distances(lengths: list[int], limit: int, expected: list[int]) -> None:
    assert _sample(lengths, limit).tolist() == expected


def test_arrays_keep_their_axes() -> None:
    pieces = [
        {
            "token_T": np.arange(4) + 4 * i,
            "expert_LTK": np.full((2, 4, 1), i),
            "layers_L": np.ones(2),
        }
        for i in range(3)
    ]
    joined = _join(pieces, _sample([2, 2, 2, 2, 2, 2], 6))
    assert joined["token_T"].tolist() == [0, 1, 4, 5, 8, 9]
    assert joined["expert_LTK"].shape == (2, 6, 1) and joined["layers_L"].shape == (2,)
