"""The headline: what was compared and what the numbers say.

Sentences are computed from the data, never from what a method is supposed to do.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from moejax.analysis import metrics as m
from moejax.analysis import text
from moejax.analysis.figures.loss import baselines
from moejax.analysis.groups import FEW, Grouping
from moejax.analysis.view import View, ranking

NAMED = 6  # with more runs a sentence gives the range instead of every run


def compared(runs: Sequence[View]) -> str:
    """One sentence: how many runs, on which text, for how many tokens."""
    states = Counter(v.summary.state for v in runs)
    done = states.get("done", 0)
    corpora = sorted({c for v in runs if (c := v.run.data.string("corpus"))})
    tokens = [v.summary.tokens for v in runs if math.isfinite(v.summary.tokens)]
    sentence = text.count(len(runs), "run")
    if corpora:
        sentence += f" on the {text.listing(corpora)} text"
    if tokens:
        low, high = min(tokens), max(tokens)
        sentence += (
            f", {_range(low, high)} training tokens each"
            if low == high
            else (f", {_range(low, high)} training tokens")
        )
    return (
        f"{sentence}. {'All' if done == len(runs) else done} finished."
        if len(runs) > 1
        else (f"{sentence}. State: {runs[0].summary.state}.")
    )


def findings(runs: Sequence[View]) -> list[str]:
    """Factual sentences, the most important first; [] if nothing was measured."""
    sentences = [
        *_loss(runs),
        *_bits(runs),
        *_baselines(runs),
        *_compute(runs),
        *_experts(runs),
        *_width(runs),
        *_classes(runs),
        *_load(runs),
        *_drops(runs),
    ]
    return [s for s in sentences if s]


def _loss(runs: Sequence[View]) -> list[str]:
    ranked = ranking(list(runs))
    if not ranked:
        return []
    best = ranked[0].summary
    bits = f", {best.bits_per_byte:.3f} bits per byte" if math.isfinite(best.bits_per_byte) else ""
    value = f"{best.loss:.3f} nats per token (perplexity {text.fixed(best.perplexity, 2)}{bits})"
    if len(ranked) == 1:
        return [f"{ranked[0].name} has a validation loss of {value}."]
    below = [_below(best.loss, ranked[1])]
    dense = next((v for v in ranked[2:] if not v.summary.moe), None)
    if dense is not None and best.moe:
        below.append(_below(best.loss, dense))
    sentence = f"{ranked[0].name} has the lowest validation loss: {value}, {' and '.join(below)}."
    if len(ranked) > 2:
        spread = ranked[-1].summary.loss - best.loss
        sentence += f" From best to worst the runs differ by {spread:.3f}."
    return [sentence]


def _below(loss: float, other: View) -> str:
    gap = other.summary.loss - loss
    if gap < 0.0005:
        return f"level with {other.name}"
    return f"{gap:.3f} ({text.percent(m.reduction(loss, other.summary.loss))}) below {other.name}"


def _bits(runs: Sequence[View]) -> list[str]:
    """Across tokenizers of the same text, where losses per token do not compare."""
    known = [v for v in runs if v.same_text and math.isfinite(v.summary.bits_per_byte)]
    if all(v.comparable for v in known) or len(known) < 2:
        return []
    best, second = sorted(known, key=lambda v: v.summary.bits_per_byte)[:2]
    return [
        "In bits per byte, which compare across tokenizers of the same text, "
        f"{best.name} is lowest: {best.summary.bits_per_byte:.3f}, then {second.name} with "
        f"{second.summary.bits_per_byte:.3f}."
    ]


def _baselines(runs: Sequence[View]) -> list[str]:
    ranked = ranking(list(runs))
    lines = dict(baselines(runs))
    if not ranked or "unigram" not in lines:
        return []
    unigram = f"the unigram line ({lines['unigram']:.3f})"
    below = [m.reduction(v.summary.loss, lines["unigram"]) for v in ranked]
    failed = [v.name for v, share in zip(ranked, below, strict=True) if share <= 0]
    low, high = text.percent(min(below)), text.percent(max(below))
    if failed:
        sentence = f"Not below {unigram}, so nothing learned yet: {text.listing(failed)}"
    elif len(ranked) == 1:
        sentence = f"It is {low} below {unigram}"
    else:
        sentence = f"Against {unigram}, the runs are {low} to {high} lower"
    if "bigram" in lines:
        better = sum(v.summary.loss < lines["bigram"] for v in ranked)
        of = f"{better} of {len(ranked)} beat"
        if len(ranked) == 1:
            of = "it beats" if better else "it does not beat"
        sentence += f"; {of} the bigram line ({lines['bigram']:.3f})"
    return [f"{sentence}."]


def _compute(runs: Sequence[View]) -> list[str]:
    known = [v for v in runs if v.summary.flops_per_token > 0]
    if len(known) < 2:
        return []
    least = min(known, key=lambda v: v.summary.flops_per_token)
    most = max(known, key=lambda v: v.summary.flops_per_token)
    low, high = (text.unit(v.summary.flops_per_token, "FLOP") for v in (least, most))
    ratio = most.summary.flops_per_token / least.summary.flops_per_token
    if ratio < 1.01:
        same = "All runs spent the same measured training compute per token within 1\u202f%"
        return [f"{same}: {low}."]
    return [
        f"Measured training compute per token goes from {low} ({least.name}) to {high} "
        f"({most.name}), a factor of {ratio:.2f}."
    ]


def _experts(runs: Sequence[View]) -> list[str]:
    known = [v for v in runs if v.summary.moe and math.isfinite(v.summary.active_experts)]
    if not known:
        return []
    if len(known) > NAMED:
        low = min(known, key=lambda v: v.summary.active_experts)
        high = max(known, key=lambda v: v.summary.active_experts)
        return [
            "Experts used per token and MoE layer: from "
            f"{low.summary.active_experts:.2f} ({low.name}) to "
            f"{high.summary.active_experts:.2f} ({high.name})."
        ]
    parts = []
    for view in known:
        part = f"{view.name} {view.summary.active_experts:.2f}"
        active = view.run.routing.active_L if view.run.routing is not None else np.zeros(0)
        active = active[np.isfinite(active)]
        if active.size > 1 and active.max() - active.min() > 0.05:
            part += f" ({active.min():.2f} to {active.max():.2f} across layers)"
        parts.append(part)
    return [f"Experts used per token and MoE layer: {text.listing(parts)}."]


def _width(runs: Sequence[View]) -> list[str]:
    """Do tokens choose the wide or the narrow experts of a heterogeneous layer?"""
    parts = []
    for view in runs:
        routing = view.run.routing
        if routing is None or all(len(set(row[row >= 0].tolist())) < 2 for row in routing.width_LE):
            continue
        exists = routing.exists_LE
        count = np.where(exists, routing.count_LE, 0).astype(np.float64)
        if not count.sum():
            continue
        chosen = float((routing.width_LE * count).sum() / count.sum())
        offered = float(routing.width_LE[exists].mean())
        change = chosen / offered - 1
        if abs(change) >= 0.01:
            word = "wider" if change > 0 else "narrower"
            parts.append(
                f"in {view.name} {chosen:.0f} hidden units, {text.percent(abs(change))} {word} "
                f"than the mean expert ({offered:.0f})"
            )
    if not parts:
        return []
    more = f"; and {len(parts) - 3} more runs" if len(parts) > 3 else ""
    return [f"Mean width of a chosen expert: {'; '.join(parts[:3])}{more}."]


def _classes(runs: Sequence[View]) -> list[str]:
    """The class with the most and the fewest experts, where their 95 % intervals do not meet."""
    parts = []
    for view in runs:
        if view.groups is None or not view.groups.layers:
            continue
        ends = _extremes(view.groups.by_class)
        if ends:
            (most, a), (fewest, b) = ends
            parts.append(
                f"in {view.name} most to \u201c{most}\u201d ({a:.2f} per layer) and fewest to "
                f"\u201c{fewest}\u201d ({b:.2f})"
            )
    more = f"; and {len(parts) - 3} more runs" if len(parts) > 3 else ""
    return [f"Experts by token class: {'; '.join(parts[:3])}{more}."] if parts else []


def _extremes(grouping: Grouping) -> tuple[tuple[str, float], tuple[str, float]] | None:
    means = grouping.means["active"]
    usable = np.flatnonzero((means.tokens >= FEW) & np.isfinite(means.half_width))
    if usable.size < 2:
        return None
    top = int(usable[np.argmax(means.mean[usable])])
    low = int(usable[np.argmin(means.mean[usable])])
    gap = means.mean[top] - means.mean[low]
    # The sum of both half widths bounds that of the difference, however the two go together.
    if gap <= means.half_width[top] + means.half_width[low] or gap < 0.01:
        return None
    return (grouping.labels[top], float(means.mean[top])), (
        grouping.labels[low],
        float(means.mean[low]),
    )


def _load(runs: Sequence[View]) -> list[str]:
    known = [v for v in runs if math.isfinite(v.summary.load_worst)]
    if not known:
        return []
    worst = max(known, key=lambda v: v.summary.load_worst)
    dead = [
        f"{v.name} {int(v.summary.dead_experts)} of {int(v.summary.experts)}"
        for v in known
        if v.summary.dead_experts > 0
    ]
    sentence = (
        f"The most uneven layer is layer {int(worst.summary.load_worst_layer)} of {worst.name}: "
        f"its busiest expert gets {worst.summary.load_worst:.2f} times a balanced share. "
    )
    return [
        sentence
        + (
            f"Experts that no validation token chose: {text.listing(dead)}."
            if dead
            else "No expert is dead."
        )
    ]


def _drops(runs: Sequence[View]) -> list[str]:
    known = [v for v in runs if math.isfinite(v.summary.drop_fraction)]
    dropping = [
        f"{v.name} {text.percent(v.summary.drop_fraction, 2)} "
        f"({v.summary.drop_causes or 'cause unknown'})"
        for v in known
        if v.summary.drop_fraction > 0
    ]
    if dropping:
        return [f"Assignments asked for and dropped: {text.listing(dropping)}."]
    return ["No assignment was dropped."] if known else []


def _range(low: float, high: float) -> str:
    return text.short(low) if low == high else f"{text.short(low)} to {text.short(high)}"
