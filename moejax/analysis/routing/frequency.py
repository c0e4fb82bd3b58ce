"""Activation frequencies of experts by language, and what they say of languages.

How often a language uses an expert of a layer, `share_LGE`, is `specialisation.specialisation` with
the language as label: N_ED / N_D, with its interval. Here is what is made of it: which experts are
shared and which belong to a language, how alike languages are, and whether relatives are more so.
After Unraveling Babel (Liu et al. 2024, 2402.16367); thresholds and measures are ours, as the
paper's could not be had.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moejax.analysis.metrics import divide
from moejax.analysis.routing.tables import BLOCK_CELLS, Bools, Floats, Ints, per_token

KINDS = ("shared", "several", "specific", "unused", "ordinary")
SHARED, SEVERAL, SPECIFIC, UNUSED, ORDINARY = range(len(KINDS))


@dataclasses.dataclass(frozen=True)
class Usage:
    """Which languages use which experts much.

    Attributes:
      high_LGE: bool, the language's frequency is `factor` times the layer's k/E or more.
      languages_LE: int64, in how many languages it is high.
      kind_LE: int64, index into `KINDS`: high in all languages, in several, in one alone; at most
        1/factor of k/E in all; none of these. -1 where there is no such expert.
      owner_LE: int64, the one language of a specific expert; -1 otherwise.
    """

    high_LGE: Bools
    languages_LE: Ints
    kind_LE: Ints
    owner_LE: Ints

    def counts(self) -> Ints:
        """int64 `[L, len(KINDS)]`: experts of each kind by layer."""
        return np.stack([(self.kind_LE == kind).sum(-1) for kind in range(len(KINDS))], -1)


@dataclasses.dataclass(frozen=True)
class Relatedness:
    """Whether languages of one group are more alike than others.

    Attributes:
      within, between: mean similarity of pairs of one group, and of two.
      difference: within - between.
      pairs: of one group.
      p_value: share of random deals of the groups to the languages whose difference is as large or
        larger (one-sided, the groups themselves counted in); 1 / (deals + 1) at least.
      nearest: share of the languages that have a relative whose most similar language is one.
    """

    within: float
    between: float
    difference: float
    pairs: int
    p_value: float
    nearest: float


def usage(share_LGE: NDArray, mask_LE: Bools, factor: float = 2.0) -> Usage:
    """Sorts experts by the languages in which their frequency is high.

    High means `factor` times k/E, the frequency that all experts would have if they were used
    evenly (k the layer's mean experts per token, the mean over languages). Specific experts of
    equal languages are chance: with few tokens compare with another division of the same tokens.
    Bad: all experts shared (no language has its own), or none (nothing is common).

    Args:
      share_LGE: frequency `[L, G, E]`, 0..1; NaN in languages without tokens.
      mask_LE: which experts there are.
      factor: above 1.

    Raises:
      ValueError: `factor` is not above 1.
    """
    if not factor > 1:
        raise ValueError(f"factor={factor} is not above 1")
    share, mask = np.asarray(share_LGE, np.float64), np.asarray(mask_LE, bool)
    known_G = np.asarray(np.isfinite(share).any((0, 2)), bool)
    even_L = divide(np.nansum(share[:, known_G], (1, 2)), known_G.sum() * mask.sum(-1))
    line_L11 = even_L[:, None, None]
    filled = np.nan_to_num(share)
    there_LGE = np.broadcast_to(known_G[:, None] & mask[:, None], share.shape)
    high = there_LGE & (filled >= factor * line_L11)
    low = (~there_LGE | (filled <= line_L11 / factor)).all(1)
    number = high.sum(1)
    kind = np.full(mask.shape, ORDINARY)
    kind[low] = UNUSED
    kind[number == 1] = SPECIFIC
    kind[number > 1] = SEVERAL
    if known_G.sum() > 1:
        kind[number == known_G.sum()] = SHARED
    kind[~mask] = -1
    owner = np.where(kind == SPECIFIC, high.argmax(1), -1)
    return Usage(high, number.astype(np.int64), kind.astype(np.int64), owner.astype(np.int64))


def language_similarity(share_LGE: NDArray, mask_LE: Bools) -> Floats:
    """Pearson correlation of two languages' frequencies over the experts of a layer, each expert's
    mean over the languages taken off first, `[L, G, G]`. No unit, -1..1.

    Without that, every pair is near 1: what all languages share outweighs what parts them. With it
    the pairs of G languages that have nothing to do with each other average -1/(G-1), the chance
    level. Noise of few tokens pulls towards it. Above: languages that deviate alike. NaN for
    languages without tokens or deviation, and with fewer than two languages.
    """
    share, mask = np.asarray(share_LGE, np.float64), np.asarray(mask_LE, bool)
    layers, languages, _ = share.shape
    found = np.full((layers, languages, languages), np.nan)
    for layer, mask_E in enumerate(mask):
        known_G = np.isfinite(share[layer][:, mask_E]).all(1) & mask_E.any()
        if known_G.sum() < 2:
            continue
        excess = share[layer][np.ix_(known_G, mask_E)]
        excess = excess - excess.mean(0)
        found[layer][np.ix_(known_G, known_G)] = _correlations(excess)
    return found


def overall_similarity(share_LGE: NDArray, mask_LE: Bools) -> Floats:
    """`language_similarity` with the experts of all layers as one layer's, `[G, G]`."""
    share, mask = np.asarray(share_LGE, np.float64), np.asarray(mask_LE, bool)
    flat = np.moveaxis(share, 1, 0)[:, mask]
    return language_similarity(flat[None], np.ones((1, flat.shape[1]), bool))[0]


def relatedness(
    similar_GG: NDArray, group_G: Sequence[str], *, deals: int = 9999, seed: int = 0
) -> Relatedness:
    """Whether languages of one group (family, branch, script) are more alike than others.

    The languages, not the tokens, are the observations: groups are dealt to languages at random,
    which leaves the similarities and the groups' sizes as they are. With few relatives there are
    few different deals, and no p-value can be small. Bad: a small p that the script alone would
    give.

    Args:
      similar_GG: of `language_similarity` (one layer) or `overall_similarity`.
      group_G: the group of each language; "" is none, and leaves the language out.
      deals: random deals of the groups.
    """
    similar = np.asarray(similar_GG, np.float64)
    names = np.asarray(group_G, dtype=str)
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(similar)
    use = np.flatnonzero((names != "") & (finite.sum(1) > 1))
    similar, names = similar[np.ix_(use, use)], names[use]
    _, group = np.unique(names, return_inverse=True)
    first, second = np.triu_indices(len(use), 1)
    value = similar[first, second]

    same = group[first] == group[second]
    pairs = int(same.sum())
    within = float(divide(value[same].sum(), pairs))
    between = float(divide(value[~same].sum(), len(same) - pairs))
    difference = within - between
    if not np.isfinite(difference):
        return Relatedness(within, between, np.nan, pairs, np.nan, np.nan)
    dealt_NG = np.random.default_rng(seed).permuted(np.tile(group, (deals, 1)), axis=1)
    # As many pairs of one group in every deal: sizes of groups stay.
    inside_N = (dealt_NG[:, first] == dealt_NG[:, second]) @ value
    difference_N = inside_N / pairs - (value.sum() - inside_N) / (len(same) - pairs)
    as_large = int((difference_N >= difference - 1e-12).sum())
    others = np.where(np.eye(len(use), dtype=bool), -np.inf, similar)
    has_relative = np.bincount(group)[group] > 1
    nearest = group[others.argmax(1)] == group
    return Relatedness(
        within,
        between,
        difference,
        pairs,
        (as_large + 1) / (deals + 1),
        float(nearest[has_relative].mean()),
    )


def cross_layer_frequency(
    probs_LTE: NDArray,
    mask_LE: Bools,
    label_T: NDArray,
    labels: int,
    active: float,
) -> Floats:
    """Frequencies where a token's experts are chosen over all layers at once, `[L, G, E]`, 0..1.

    Of all (layer, expert) pairs a token takes the `active * L` with the largest share of their
    layer's activity; a layer in which activity is spread evenly gets few, one in which a few
    experts have most of it gets those. `share.sum(-1)` says how many experts a layer gets, and
    averages `active` over layers. NaN where a language has no tokens. Ties go to the lower layer
    and expert.

    Args:
      probs_LTE: of a trace with `--probs`: an expert's share of the layer's scores. Of the *oracle*
        with all experts on, this is what the dense model does.
      label_T: language of each token, 0..labels-1; others are left out.
      active: experts per token and layer, on average.

    Raises:
      ValueError: lengths differ, or there are fewer experts than `active`.
    """
    probs, mask = np.asarray(probs_LTE), np.asarray(mask_LE, bool)
    layers, tokens, experts = probs.shape
    label = per_token(label_T, tokens, "label_T").astype(np.int64)
    wanted = round(active * layers)
    if not 0 < wanted <= mask.sum():
        raise ValueError(f"{wanted} experts over all layers, of {int(mask.sum())}")
    total = np.zeros((labels, layers * experts))
    inside = np.flatnonzero((label >= 0) & (label < labels))
    step = max(1, BLOCK_CELLS // max(layers * experts, 1))
    for start in range(0, len(inside), step):
        token_N = inside[start : start + step]
        value = np.moveaxis(probs[:, token_N], 0, 1).astype(np.float32)
        value = np.where(mask, np.nan_to_num(value), -1.0).reshape(len(token_N), -1)
        best = np.argsort(-value, axis=1, kind="stable")[:, :wanted]
        np.add.at(total, (label[token_N][:, None], best), 1.0)
    size = np.bincount(label[inside], minlength=labels)
    share = divide(total, size[:, None]).reshape(labels, layers, experts)
    return np.where(mask[:, None], np.moveaxis(share, 0, 1), np.nan)


def _correlations(row_GX: Floats) -> Floats:
    centred = row_GX - row_GX.mean(1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = divide(centred, np.where(length > 1e-12, length, 0.0))
    return np.clip(unit @ unit.T, -1.0, 1.0)
