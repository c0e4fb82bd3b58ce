"""Known answers of methods H.4: co-activation and saturation."""

import numpy as np
import pytest

from moejax.analysis.selections import co_activation, saturation

TABLE = np.array([[0, 1, 2], [0, 2, 1], [0, 3, 1]])


def test_H4_co_activation_of_all_pairs():
    got = co_activation(TABLE, 4)
    want = {(0, 1): 1, (0, 2): 2 / 3, (0, 3): 1 / 3, (2, 0): 1, (3, 2): 0}
    for place, value in want.items():
        assert got[place] == pytest.approx(value)


def test_H4_co_activation_of_neighbours_only():
    got = co_activation(TABLE, 4, adjacent=True)
    for place, value in {(0, 1): 1 / 3, (2, 0): 0.5, (2, 1): 1}.items():
        assert got[place] == pytest.approx(value)


def test_co_activation_leaves_out_empty_slots_and_unused_experts():
    got = co_activation(np.array([[0, 4], [0, 1]]), 4)
    np.testing.assert_allclose(got[0], [0, 0.5, 0, 0])
    assert got[1, 0] == 1 and np.isnan(got[2:]).all()


def test_H4_saturation_of_identical_and_of_disjoint_sets():
    other = np.array([[2, 1, 0], [1, 0, 2], [1, 3, 0]])
    assert saturation(TABLE, TABLE, 4) == saturation(other, TABLE, 4) == 1
    assert saturation(np.array([[0, 1]]), np.array([[2, 3]]), 4) == 0


def test_saturation_counts_what_the_final_choice_holds():
    early, final = np.array([[0, 1], [2, 9]]), np.array([[1, 9], [9, 9]])
    assert saturation(early, final, 4) == 1
    assert np.isnan(saturation(early, np.full((2, 2), 9), 4))
    with pytest.raises(ValueError, match="tables of 2 and 1 tokens"):
        saturation(early, final[:1], 4)
