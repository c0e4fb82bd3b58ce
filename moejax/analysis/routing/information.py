"""Mutual information of a label and an expert, and what of it is an accident of small counts.

Bias. The plug-in estimate is too high: of labels that have nothing to do with the experts it makes
about (R-1)(E-1)/2N nats out of N assignments to R x E cells. Three numbers are given:

* Miller-Madow (1955) subtracts (cells in use - ...)/2N. It is an expansion in 1/N: good for a
  few labels with thousands of independent tokens, far off for token ids, which occur 10 times each
  over 64 experts, and it knows nothing of tokens that come in sequences.
* `chance` is the mean of the plug-in estimate over shuffled labels, which answers both: counts of
  labels and loads of experts stay as they are, a token keeps its whole set of experts (it is dealt
  as one), and with `sequence_T` whole sequences are dealt, for labels of sequences such as domain
  and language.
* `adjusted` is the one to report: C (I - chance) / (C - chance), with C the most that I can be.
  Plain subtraction of the chance level is right where nothing is shared but takes too much where
  much is (a router that is a function of the token id has no bias at all); this form is right at
  both ends. It is the adjustment of Vinh et al. 2010 for mutual information, with shuffles in place
  of their closed form, which holds for one expert per token only.

In `tests/analysis/test_routing_metrics_information.py` a router of known information is simulated:
the bias of the plug-in estimate falls by the factors stated there.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from moejax.analysis.metrics import divide
from moejax.analysis.routing.tables import (
    Bools,
    Floats,
    Ints,
    Rows,
    check_choices,
    per_token,
    slots,
    tables,
    token_blocks,
)

PERMUTATIONS = 4


@dataclasses.dataclass(frozen=True)
class Information:
    """Mutual information I(label; expert) by layer, all `[L]`, nats, of a token's label and one of
    its assignments, taken at random.

    Attributes:
      assignments: N, filled slots of tokens that have a label.
      labels: R, labels that occur with an expert.
      plug_in: from the observed shares: biased upwards.
      miller_madow: plug_in + (R + E' - M - 1) / 2N, with E' experts and M cells in use.
      chance: mean plug_in of shuffled labels.
      ceiling: the most it can be, min(H(label), H(expert) - mean ln k): the second is reached where
        the label fixes the set of k experts.
      adjusted: ceiling * (plug_in - chance) / (ceiling - chance); about 0 without a relation (it
        may fall below by chance), `ceiling` at the most. NaN where ceiling <= chance: then the
        counts are too small to tell anything.
    """

    assignments: Ints
    labels: Ints
    plug_in: Floats
    miller_madow: Floats
    chance: Floats
    ceiling: Floats
    adjusted: Floats

    @property
    def share(self) -> Floats:
        """adjusted / ceiling: 0 chance, 1 the label fixes the experts, or they fix the label."""
        return divide(self.adjusted, self.ceiling)


def mutual_information(
    expert_LTK: NDArray,
    mask_LE: Bools,
    label_T: NDArray,
    *,
    sequence_T: NDArray | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Information:
    """I(label; expert) = sum_xe p(x, e) ln(p(x, e) / (p(x) p(e))) by layer. Nats, 0..`ceiling`.

    Token id -> expert: labels are input ids (or target or predicted ones). Domain or language:
    labels of sequences, with `sequence_T`. High is specialisation, not a virtue by itself. Bad: at
    `chance` in all layers (experts are interchangeable), or `share` near 1 for input ids in deep
    layers (routing by the token alone: context is not used). Source: Shannon 1948; for MoE e.g.
    OpenMoE (2402.01739) on routing by token id.

    Args:
      label_T: integers; negative: not counted.
      sequence_T: shuffle labels of whole sequences. For labels that are constant in a sequence.

    Raises:
      ValueError: lengths differ, or a label changes within a sequence of `sequence_T`.
    """
    expert, mask = check_choices(expert_LTK, mask_LE)
    label = per_token(label_T, expert.shape[1], "label_T").astype(np.int64)
    rows = Rows.of(label)
    shuffles = [Rows.of(label) for label in shuffled(label, sequence_T, permutations, seed)]
    found = np.full((len(mask), 7), np.nan)
    for layer, mask_E in enumerate(mask):
        observed = _estimate(expert[layer], mask_E, rows)
        dealt = [_estimate(expert[layer], mask_E, deal).plug_in for deal in shuffles]
        chance = float(np.mean(dealt or [np.nan]))
        # Within a token the expert is one of k at random, whatever the label says.
        within = _mean_log_active(expert[layer], mask_E, rows)
        ceiling = max(min(observed.h_label, observed.h_expert - within), 0.0)
        found[layer] = (
            *(observed.n, observed.labels, observed.plug_in),
            *(observed.plug_in + observed.correction, chance, ceiling),
            adjust(observed.plug_in, chance, ceiling),
        )
    return Information(*found[:, :2].T.astype(np.int64), *found[:, 2:].T)


def adjust(value: float, chance: float, ceiling: float) -> float:
    """ceiling * (value - chance) / (ceiling - chance): 0 at chance, `ceiling` at the ceiling."""
    if not ceiling - chance > 1e-12:
        return float("nan")
    return ceiling * (value - chance) / (ceiling - chance)


def shuffled(label_T: Ints, sequence_T: NDArray | None, permutations: int, seed: int) -> list[Ints]:
    """The labels, dealt anew `permutations` times: to the tokens that have one, or to sequences.

    Raises:
      ValueError: a label changes within a sequence.
    """
    rng = np.random.default_rng(seed)
    if sequence_T is None:
        has = np.flatnonzero(label_T >= 0)
        unit_N, label_U = np.arange(has.size), label_T[has]
    else:
        sequence = per_token(sequence_T, len(label_T), "sequence_T")
        has = np.flatnonzero(label_T >= 0)
        _, first, unit_N = np.unique(sequence[has], return_index=True, return_inverse=True)
        label_U = label_T[has][first]
        if (label_U[unit_N] != label_T[has]).any():
            raise ValueError("a label changes within a sequence: shuffle tokens (sequence_T=None)")
    dealt = []
    for _ in range(permutations):
        label = np.full(len(label_T), -1, np.int64)
        label[has] = label_U[rng.permutation(len(label_U))][unit_N]
        dealt.append(label)
    return dealt


@dataclasses.dataclass(frozen=True)
class _Estimate:
    """Assignments, labels in use, entropies, and the plug-in estimate with its correction."""

    n: float = 0
    labels: int = 0
    h_label: float = np.nan
    h_expert: float = np.nan
    plug_in: float = np.nan
    correction: float = np.nan


def _estimate(expert_TK: NDArray, mask_E: Bools, rows: Rows) -> _Estimate:
    cell_sum = row_sum = 0.0
    labels = cells = 0
    total_E = np.zeros(len(mask_E))
    for _, part in tables(expert_TK, mask_E, rows):
        total_E += part.sum(0)
        total_R = part.sum(1)
        labels += int(np.count_nonzero(total_R))
        row_sum += _sum_n_log_n(total_R)
        cells += int(np.count_nonzero(part))
        cell_sum += _sum_n_log_n(part)
    n = float(total_E.sum())
    if n == 0:
        return _Estimate()
    h_label = float(np.log(n)) - row_sum / n
    h_expert = float(np.log(n)) - _sum_n_log_n(total_E) / n
    plug_in = max(h_label + h_expert - float(np.log(n)) + cell_sum / n, 0.0)
    correction = (labels + np.count_nonzero(total_E) - cells - 1) / (2 * n)
    return _Estimate(n, labels, h_label, h_expert, plug_in, correction)


def _mean_log_active(expert_TK: NDArray, mask_E: Bools, rows: Rows) -> float:
    """Mean over assignments of the log of how many their token has."""
    n = total = 0.0
    for block in token_blocks(len(rows.token_N)):
        active = (slots(expert_TK[rows.token_N[block]], mask_E) < len(mask_E)).sum(-1)
        n += active.sum()
        total += _sum_n_log_n(active)
    return total / n if n else np.nan


def _sum_n_log_n(count: NDArray) -> float:
    count = count[count > 0].astype(np.float64)
    return float((count * np.log(count)).sum())
