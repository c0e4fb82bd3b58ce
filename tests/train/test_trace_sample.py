"""What of an evaluation is kept token by token: rows from all over the text."""

from __future__ import annotations

import numpy as np
import pytest

from moejax.train.evaluate import _join, traced_rows


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
