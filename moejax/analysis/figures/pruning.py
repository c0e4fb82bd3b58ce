"""What a model loses with its experts: chosen by frequency, at random, by magnitude."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from moejax.analysis import text
from moejax.analysis.charts.spec import Axis, Chart, Rule, Series, series
from moejax.analysis.evidence import Evidence, PrunedRun
from moejax.analysis.figures.base import DRAWN, Figure, Row, missing
from moejax.analysis.intervals import mean_of
from moejax.analysis.pruning import ALL, FREQUENCY, RANDOM, Cut, Study
from moejax.analysis.records import Estimate

TITLE = "Pruning"
CAPTION = (
    "Perplexity of a checkpoint that has lost a share of its experts, nothing being trained "
    "afterwards. Experts go by how rarely tokens of other documents used them (frequency), at "
    "random with the same counts per layer, or by the size of their weights (magnitude). Bands: "
    "95 % intervals over documents; of random, over its draws. Frequency is worth knowing where "
    "its curve is below random's band. By language: change of the loss under the frequencies of "
    "all languages, and under its own (sparse activation: nothing is removed then)."
)
HEADER: Row = (
    "run", "router", "corpus", "step", "score", "of", "spread", "rate", "seed", "experts",
    "parameters", "flops_per_token", "tokens_per_second", "language", "loss", "loss_low",
    "loss_high", "change", "change_low", "change_high", "perplexity",
)  # fmt: skip
STUDIES = 6  # drawn; the CSV has all
RATE = "share of experts removed"
CHANGE = "change of the loss (nats per token)"
FATES = {"remove": "", "keep": ", routers kept", "all": ", all others on"}
UNKNOWN = Estimate(math.nan, math.nan, math.nan)


def build(evidence: Evidence) -> Figure:
    """A tab per study; the CSV has every row and language."""
    known = [one for one in evidence.pruned if one.study.rows]
    if not known:
        why = "no run has a study of pruning (python -m tools.prune --run=RUN writes one)"
        return missing("pruning", TITLE, why)
    rows: list[Row] = [HEADER]
    for one in known:
        rows += [row for cut in (one.study.whole, *one.study.rows) for row in _rows(one, cut)]
    tabs = []
    told = []
    for number, one in enumerate(known[:STUDIES]):
        study = one.study
        label = text.shorten(f"{one.view.name}, {study.corpus}{FATES.get(study.router, '')}", 60)
        tabs.append((label, _charts(f"pruning-{number}", study)))
        told.append(
            f"{label}: {text.short(study.tokens)} tokens in "
            f"{text.count(study.sequences, 'document')} scored, frequencies of "
            f"{text.short(study.calibration_tokens)} others."
        )
    more = len(known) - len(tabs)
    if more > 0:
        told.append(f"The picture shows the first {len(tabs)} of {len(known)} studies.")
    return Figure("pruning", TITLE, " ".join([CAPTION, *told]), tuple(rows), tuple(tabs))


def _rows(one: PrunedRun, cut: Cut) -> Iterable[Row]:
    study = one.study
    for language in (ALL, *study.languages):
        loss, change = cut.loss.get(language, UNKNOWN), cut.change.get(language, UNKNOWN)
        yield (
            one.view.name, study.router, study.corpus, study.step, cut.score or "whole", cut.of,
            cut.spread, cut.rate, cut.seed if cut.seed >= 0 else "", int(cut.kept_L.sum()),
            cut.parameters, cut.flops_per_token, cut.tokens_per_second, language or "all",
            loss.mean, loss.low, loss.high, change.mean, change.low, change.high,
            cut.perplexity(language).mean,
        )  # fmt: skip


def _charts(name: str, study: Study) -> tuple[Chart, ...]:
    whole = study.whole.perplexity().mean
    made = [
        Chart(
            f"{name}-perplexity",
            "Perplexity",
            "Line chart of perplexity over the share of experts removed, by how they are chosen.",
            Axis(RATE),
            Axis("perplexity", log=_steep(study)),
            tuple(_methods(study)),
            (Rule(whole, "whole model"),) if math.isfinite(whole) else (),
        )
    ]
    languages = study.languages[:DRAWN]
    best = _best_spread(study)
    if len(languages) > 1:
        for of, title in ((lambda _: ALL, "By language"), (lambda one: one, "Own frequencies")):
            lines = [
                line
                for look, language in enumerate(languages)
                if (line := _of_language(study, language, of, best, look)) is not None
            ]
            if lines:
                made.append(
                    Chart(
                        f"{name}-{title.lower().replace(' ', '-')}",
                        f"{title}, {best}",
                        f"Line chart of the change of the loss for {len(lines)} languages.",
                        Axis(RATE),
                        Axis(CHANGE),
                        tuple(lines),
                    )
                )
    return tuple(made)


def _methods(study: Study) -> list[Series]:
    """A line per way to choose; of random the mean of its draws, in the log of perplexity."""
    found: dict[tuple[str, str], dict[float, list[Cut]]] = {}
    for cut in study.rows:
        if cut.of == ALL:
            by_rate = found.setdefault((cut.score, cut.spread), {})
            by_rate.setdefault(cut.rate, []).append(cut)
    lines = []
    for look, ((score, spread), by_rate) in enumerate(found.items()):
        rates = sorted(rate for rate in by_rate if math.isfinite(rate))
        read = _over_draws if score == RANDOM else _over_documents
        ends = np.array([read(by_rate[rate]) for rate in rates]).reshape(-1, 3)
        ends = np.where(np.isfinite(ends), ends, ends[:, :1])
        notes = [
            f"{score}, {spread}: {mean:.3f} ({low:.3f} to {high:.3f}), "
            f"{text.short(by_rate[rate][0].parameters)} parameters"
            for rate, (mean, low, high) in zip(rates, ends, strict=True)
        ]
        name = text.clean(f"{score}, {spread}", 40)
        mean, low, high = ends.T
        lines.append(series(name, look, rates, mean, low=low, high=high, notes=notes))
    return lines


def _over_documents(cuts: Sequence[Cut]) -> tuple[float, float, float]:
    found = cuts[0].perplexity()
    return found.mean, found.low, found.high


def _over_draws(cuts: Sequence[Cut]) -> tuple[float, float, float]:
    losses = [cut.loss.get(ALL, UNKNOWN).mean for cut in cuts]
    found = mean_of([loss for loss in losses if math.isfinite(loss)])
    ends = (found.mean, found.mean - found.half_width, found.mean + found.half_width)
    low, middle, high = (math.exp(v) if v < 700 else math.nan for v in (ends[1], ends[0], ends[2]))
    return middle, low, high


def _best_spread(study: Study) -> str:
    """The spread under which frequency loses least, summed over the rates."""
    total: dict[str, float] = {}
    for cut in study.rows:
        change = cut.change.get(ALL, UNKNOWN).mean
        if cut.score == FREQUENCY and cut.of == ALL and math.isfinite(change):
            total[cut.spread] = total.get(cut.spread, 0.0) + change
    return min(total, key=lambda spread: total[spread]) if total else ""


def _of_language(
    study: Study, language: str, of: Callable[[str], str], spread: str, look: int
) -> Series | None:
    cuts = [
        cut
        for cut in study.rows
        if (cut.score, cut.of, cut.spread) == (FREQUENCY, of(language), spread)
    ]
    if not cuts:
        return None
    cuts.sort(key=lambda cut: cut.rate)
    ends = np.array(
        [(at.mean, at.low, at.high) for at in (cut.change.get(language, UNKNOWN) for cut in cuts)]
    )
    ends = np.where(np.isfinite(ends), ends, ends[:, :1])
    mean, low, high = ends.T
    return series(language, look, [cut.rate for cut in cuts], mean, low=low, high=high)


def _steep(study: Study) -> bool:
    """Whether perplexities span more than a factor of 20."""
    found = [cut.perplexity().mean for cut in (study.whole, *study.rows)]
    finite = [value for value in found if math.isfinite(value) and value > 0]
    return bool(finite) and max(finite) > 20 * min(finite)
