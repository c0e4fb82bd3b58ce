"""Paths: how a token's experts in one layer go with its experts in the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moejax.analysis.metrics import divide
from moejax.analysis.routing.information import PERMUTATIONS, Information, mutual_information
from moejax.analysis.routing.pairs import pair_shares
from moejax.analysis.routing.tables import Bools, Floats, Ints, check_choices, slots


def joint_choices(expert_LTK: NDArray, mask_LE: Bools) -> Floats:
    """Joint shares of experts of neighbouring layers, `[L-1, E, E]`: J_ij = mean over tokens of
    [i in A_t] [j in B_t] / (|A_t| |B_t|), with A_t the token's experts in layer l and B_t in l+1.

    No unit, 0..1, each layer sums to 1. Chance: the product of its margins. Tokens without an
    expert in either are left out; NaN throughout where none is left. For first choices only, pass
    `[:, :, :1]`.
    """
    expert, mask = check_choices(expert_LTK, mask_LE)
    layers, experts = mask.shape
    joint = np.full((max(layers - 1, 0), experts, experts), np.nan)
    for layer in range(layers - 1):
        total = pair_shares(expert[layer], mask[layer], expert[layer + 1], mask[layer + 1])
        joint[layer] = divide(total, total.sum())
    return joint


def transitions(joint_LEE: NDArray) -> Floats:
    """P(j in the next layer | i in this one) = J_ij / sum_j J_ij, `[L-1, E, E]`. No unit, 0..1.

    Rows sum to 1; NaN in the rows of unused experts. Chance: sum_i J_ij, the load of j. The widths
    of a Sankey diagram are `joint_choices` itself. Bad: rows near one-hot in all layers.
    """
    return divide(joint_LEE, np.asarray(joint_LEE).sum(-1, keepdims=True))


def layer_information(
    expert_LTK: NDArray, mask_LE: Bools, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> Information:
    """I(first choice in layer l; experts in layer l+1), arrays `[L-1]`, nats, 0..`ceiling`.

    Corrected for bias as `information` states: E x E cells make the plug-in estimate far too high.
    High: the route is decided early and layers repeat it. Bad: `share` near 1 (depth adds no
    choice: the experts of two layers are one), or at chance throughout.
    """
    expert, mask = check_choices(expert_LTK, mask_LE)
    found = []
    for layer in range(len(mask) - 1):
        label = slots(expert[layer, :, :1], mask[layer]).max(1, initial=-1)
        label = np.where(label < mask.shape[1], label, -1)
        after = slice(layer + 1, layer + 2)
        found.append(
            mutual_information(
                expert[after], mask[after], label, permutations=permutations, seed=seed + layer
            )
        )
    names = [field.name for field in dataclasses.fields(Information)]
    empty: list[Floats] = [np.zeros(0)]
    return Information(*(np.concatenate([getattr(f, n) for f in found] or empty) for n in names))


@dataclasses.dataclass(frozen=True)
class Paths:
    """Routes of first choices through some layers.

    Attributes:
      layers: rows of the trace that the path runs through, `[l]`.
      tokens: tokens that have a first choice in all of them.
      distinct: paths that occur.
      path_Pl, count_P: the most common ones, most common first, and their tokens.
      entropy: of the distribution over paths, nats, 0..ceiling.
      ceiling: min(ln tokens, sum of ln E): at ln tokens each token has a path of its own.
      chance_entropy, chance_top: entropy, and share of tokens on the P most common paths, if each
        layer's first choices are dealt to the tokens at random (mean over shuffles): layers that
        know nothing of each other, at the same loads and the same number of tokens.
      coverage: 1 - (paths seen once) / tokens, Good and Turing's estimate of the share of new
        tokens whose path is known. Below about 1/2 the entropy says more of the sample than of the
        model: use fewer layers.
    """

    layers: Ints
    tokens: int
    distinct: int
    path_Pl: Ints
    count_P: Ints
    entropy: float
    ceiling: float
    chance_entropy: float
    chance_top: float
    coverage: float

    @property
    def top(self) -> float:
        """Share of tokens on the P most common paths; compare `chance_top`."""
        return float(divide(self.count_P.sum(), self.tokens))


def common_paths(
    expert_LTK: NDArray,
    mask_LE: Bools,
    layers: Sequence[int],
    *,
    top: int = 10,
    permutations: int = 2,
    seed: int = 0,
) -> Paths:
    """Distribution of routes (first choice in each of `layers`) over tokens; see `Paths`.

    Entropy below `chance_entropy`: layers go together. Bad: entropy near 0 (all tokens take one
    route: a collapse in depth). Two to four layers at a time; over a whole deep model every token
    has a route of its own.
    """
    expert, mask = check_choices(expert_LTK, mask_LE)
    chosen = np.asarray(layers, np.int64)
    experts = mask.shape[1]
    choice_lT = np.stack(
        [slots(expert[x, :, :1], mask[x]).min(1, initial=experts) for x in chosen]
        or [np.zeros(0, np.int64)]
    )
    choice_lT = choice_lT[:, (choice_lT < experts).all(0)]
    tokens = choice_lT.shape[1]
    count, first = _count_paths(choice_lT)
    best = np.argsort(-count, kind="stable")[:top]
    rng = np.random.default_rng(seed)
    dealt = [
        _count_paths(np.stack([row[rng.permutation(tokens)] for row in choice_lT]))[0]
        for _ in range(permutations)
    ]
    shares = [float(divide(np.sort(c)[::-1][:top].sum(), tokens)) for c in dealt]
    return Paths(
        chosen,
        tokens,
        len(count),
        choice_lT[:, first[best]].T.astype(np.int64),
        count[best],
        _entropy(count),
        float(min(np.log(tokens), np.log(mask[chosen].sum(-1)).sum())) if tokens else np.nan,
        float(np.mean([_entropy(c) for c in dealt] or [np.nan])),
        float(np.mean(shares or [np.nan])),
        float(1.0 - divide((count == 1).sum(), tokens)),
    )


def _count_paths(choice_lT: NDArray) -> tuple[Ints, Ints]:
    """Tokens of each distinct column, columns in ascending order, and one token that has it."""
    if not choice_lT.shape[1]:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    code = np.zeros(choice_lT.shape[1], np.int64)
    first, count = np.zeros(1, np.int64), np.zeros(1, np.int64)
    for row in choice_lT:
        # The codes so far are ranks below T, so that code * E fits however deep the path is.
        code = code * (int(row.max()) + 1) + row
        _, first, code, count = np.unique(
            code, return_index=True, return_inverse=True, return_counts=True
        )
    return count, first


def _entropy(count_P: NDArray) -> float:
    p = count_P / max(count_P.sum(), 1)
    return float(-(p * np.log(p)).sum()) if count_P.size else float("nan")
