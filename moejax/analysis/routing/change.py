"""The same experts in two models, before and after training, on the same tokens."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from scipy import special

from moejax.analysis.metrics import divide
from moejax.analysis.routing.specialisation import label_units
from moejax.analysis.routing.tables import Bools, Floats, Rows, check_choices, per_token, tables


@dataclasses.dataclass(frozen=True)
class Change:
    """How far activation frequencies moved.

    Attributes:
      before: `[L, G, E]`, share of the label's tokens that used the expert; 0..1.
      difference: `[L, G, E]`, frequency after less before; -1..1.
      half_width: `[L, G, E]`, half of its 95 % interval; NaN with fewer than 2 sequences.
      correlation: `[L, G]`, of the frequencies before and after over the experts; NaN where one of
        them is the same for all.
    """

    before: Floats
    difference: Floats
    half_width: Floats
    correlation: Floats

    @property
    def moved(self) -> Floats:
        """`[L, G]`, share of the experts whose interval leaves out 0; chance 0.05."""
        known = np.isfinite(self.half_width)
        far = known & (np.abs(self.difference) > self.half_width)
        return np.asarray(divide(far.sum(-1), known.sum(-1)))


def frequency_change(
    before_LTK: NDArray,
    after_LTK: NDArray,
    mask_LE: Bools,
    label_T: NDArray,
    labels: int,
    sequence_T: NDArray,
) -> Change:
    """Change of each label's activation frequencies between two models of the same experts.

    Both models saw the same tokens, so the interval is of paired differences, which are a ratio of
    sums over sequences (`specialisation` states its interval).

    Args:
      before_LTK, after_LTK: chosen experts, integers; one shape but for the slots.
      mask_LE: experts that exist.
      label_T: 0..labels-1; tokens with others are left out.
      sequence_T: sequence of each token.

    Raises:
      ValueError: the two are not of the same layers and tokens.
    """
    before, mask = check_choices(before_LTK, mask_LE)
    after, _ = check_choices(after_LTK, mask_LE)
    if before.shape[:2] != after.shape[:2]:
        raise ValueError(f"{before.shape[:2]} and {after.shape[:2]} (layers, tokens) differ")
    label = per_token(label_T, before.shape[1], "label_T").astype(np.int64)
    label = np.where((label >= 0) & (label < labels), label, -1)
    units, label_U = label_units(label, per_token(sequence_T, before.shape[1], "sequence_T"))
    size_G = np.bincount(label_U, units.size_R, minlength=labels)
    sequences = np.bincount(label_U, minlength=labels)
    t = special.stdtrit(np.maximum(sequences - 1, 1), 0.975)
    factor_G = divide(t * np.sqrt(divide(sequences, np.maximum(sequences - 1, 0))), size_G)
    shape = (len(mask), labels, mask.shape[1])
    first, difference, half = (np.full(shape, np.nan) for _ in range(3))
    correlation = np.full(shape[:2], np.nan)
    for layer, mask_E in enumerate(mask):
        old_UE, new_UE = (_sums(expert[layer], mask_E, units) for expert in (before, after))
        old_GE, new_GE = (_by_label(part, label_U, labels) for part in (old_UE, new_UE))
        first[layer] = np.where(mask_E, divide(old_GE, size_G[:, None]), np.nan)
        moved_GE = divide(new_GE - old_GE, size_G[:, None])
        rest_UE = new_UE - old_UE - moved_GE[label_U] * units.size_R[:, None]
        difference[layer] = np.where(mask_E, moved_GE, np.nan)
        spread_GE = np.sqrt(_by_label(rest_UE**2, label_U, labels))
        half[layer] = np.where(mask_E, factor_G[:, None] * spread_GE, np.nan)
        correlation[layer] = _correlation(old_GE[:, mask_E], new_GE[:, mask_E])
    return Change(first, difference, half, correlation)


def _sums(expert_TK: NDArray, mask_E: Bools, units: Rows) -> Floats:
    """Tokens of each unit that use each expert, `[U, E]`."""
    parts = [part for _, part in tables(expert_TK, mask_E, units)]
    return np.concatenate(parts or [np.zeros((0, len(mask_E)))]).astype(np.float64)


def _by_label(part_UE: Floats, label_U: NDArray, labels: int) -> Floats:
    total_GE = np.zeros((labels, part_UE.shape[1]))
    np.add.at(total_GE, label_U, part_UE)
    return total_GE


def _correlation(old_GE: Floats, new_GE: Floats) -> Floats:
    """Pearson's, of each row with its partner."""
    old, new = (x - x.mean(-1, keepdims=True) for x in (old_GE, new_GE))
    return np.asarray(divide((old * new).sum(-1), np.sqrt((old**2).sum(-1) * (new**2).sum(-1))))
