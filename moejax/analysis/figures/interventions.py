"""How much a model needs its experts: loss when some are taken away, added, or dropped."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from moejax.analysis import text
from moejax.analysis.charts.scales import difference
from moejax.analysis.charts.spec import Axis, Chart, Drawable, Grid, Maps, Series, series
from moejax.analysis.evidence import Evidence, Swept
from moejax.analysis.figures.base import DRAWN, Figure, Row, missing
from moejax.analysis.interventions import Estimate, Measured, Sweep

TITLE = "Interventions"
CAPTION = (
    "Loss of a checkpoint when experts are taken away or added at test time, nothing being "
    "trained. Bands and bars are 95 % intervals over sequences; those of the change are of paired "
    "differences from the untouched model, so much narrower than those of two losses. A steep "
    "curve: experts are not redundant. An interval is about one checkpoint, not about other seeds."
)
HEADER: Row = (
    "run", "intervention", "when", "renormalise", "acts_on", "corpus", "step", "value", "layers",
    "loss", "loss_low", "loss_high", "change", "change_low", "change_high", "experts", "width",
)  # fmt: skip
# What a sweep is, its title and its x axis. Of any other kind nothing is known to draw.
KINDS = {
    "disable_top": ("Experts disabled", "most probable experts taken away from each token"),
    "k": ("Experts per token", "experts per token, k"),
    "p": ("Threshold", "threshold p"),
    "shared_for_routed": ("Shared for routed", "shared expert taken away, routed ones added"),
    "drop_one": ("One expert dropped", "expert"),
}
CONVENTIONS = ("disable_top", "drop_one")  # those of which `when` and `renormalise` say something
MOST_VALUES = 200  # of a curve, MOST_BARS of bars, MOST_CELLS of a map; the CSV has all
MOST_BARS = 16
MOST_CELLS = 1 << 18
LOSS, CHANGE = "loss (nats per token)", "change of the loss (nats per token)"
_Key = tuple[str, str, bool, str]


def build(evidence: Evidence) -> Figure:
    """A tab per intervention and conventions; the CSV has every row of every sweep."""
    known = []
    for one in evidence.sweeps:
        if one.sweep.what in KINDS and one.sweep.rows:
            known.append(one)
        else:
            what = f"{one.sweep.what or 'a sweep without a name'}: not drawn, as it is of none of "
            one.view.run.note("note", "interventions/", f"{what}{', '.join(KINDS)}, or empty")
    if not known:
        why = (
            "no run has a sweep of interventions (python -m tools.intervene --run=RUN "
            f"--what={'|'.join(KINDS)} writes one; it needs a checkpoint)"
        )
        return missing("interventions", TITLE, why)
    rows: list[Row] = [HEADER]
    for one in known:
        rows += [_row(one, at) for at in (one.sweep.untouched, *one.sweep.rows)]
    order = list(KINDS)
    # Of one kind the default conventions come first.
    keys = sorted(
        {_key(one.sweep) for one in known},
        key=lambda key: (order.index(key[0]), key[1] == "after", not key[2], key[3]),
    )
    tabs = []
    told: dict[str, list[str]] = {}
    for number, key in enumerate(keys):
        own, corpus = _on_one_text([one for one in known if _key(one.sweep) == key])
        shown = own[:DRAWN]
        name = f"interventions-{number}"
        tabs.append((_label(key), _charts(name, key, shown)))
        told.setdefault(_about(key, known, own, shown, corpus), []).append(_label(key))
    about = [f"{'; '.join(labels)}: {said}" for said, labels in told.items()]
    caption = f"{CAPTION} {' '.join(about)}"
    return Figure("interventions", TITLE, caption, tuple(rows), tuple(tabs))


def _key(sweep: Sweep) -> _Key:
    free = sweep.what in CONVENTIONS
    # One layer at a time is what `drop_one` always does.
    whole = ("", "each") if sweep.what == "drop_one" else ("",)
    return (
        sweep.what,
        sweep.when if free else "",
        sweep.renormalise if free else True,
        "all" if sweep.acts_on in whole else sweep.acts_on,
    )


def _label(key: _Key) -> str:
    """The title, and each convention that is not the default one."""
    what, when, renormalise, acts_on = key
    said = ["after the choice"] if when == "after" else []
    said += [] if renormalise else ["not renormalised"]
    if acts_on == "each":
        said.append("each layer")
    elif acts_on != "all":
        said.append(f"layers {acts_on}")
    return text.shorten(", ".join([KINDS[what][0], *said]), 60)


def _on_one_text(found: Sequence[Swept]) -> tuple[list[Swept], str]:
    """One sweep per run, all of the tokens that most runs have, so that losses compare."""
    by_text: dict[tuple[str, str], dict[str, Swept]] = {}
    for one in found:
        by_text.setdefault((one.sweep.corpus, one.sweep.tokens_sha256), {})[one.view.name] = one
    best = max(sorted(by_text), key=lambda place: len(by_text[place]))
    return list(by_text[best].values()), best[0]


def _about(
    key: _Key, known: Sequence[Swept], own: Sequence[Swept], shown: Sequence[Swept], corpus: str
) -> str:
    tokens = sorted({one.sweep.tokens for one in own})
    range_of = " to ".join(text.short(n) for n in sorted({tokens[0], tokens[-1]}))
    said = f"measured on {corpus or 'an unnamed text'}, {range_of} tokens"
    kept = {one.view.name for one in own}
    other = {one.view.name for one in known if _key(one.sweep) == key} - kept
    said += f"; on other tokens, so left out: {text.listing(sorted(other))}" if other else ""
    if len(shown) < len(own):
        said += f"; the picture shows the first {len(shown)} of {len(own)} runs"
    return f"{said}."


def _row(one: Swept, at: Measured) -> Row:
    sweep, loss, change = one.sweep, at.loss, at.change
    value = at.value if at.layers else "untouched"
    numbers = (loss.mean, loss.low, loss.high, change.mean, change.low, change.high)
    return (
        one.view.name, sweep.what, sweep.when, sweep.renormalise, sweep.acts_on, sweep.corpus,
        sweep.step, value, " ".join(map(str, at.layers)), *numbers, at.active, at.width,
    )  # fmt: skip


def _charts(name: str, key: _Key, own: Sequence[Swept]) -> tuple[Drawable, ...]:
    what, _, _, acts_on = key
    if what == "drop_one" or acts_on == "each":
        return (_maps(name, what, own),)
    if what == "shared_for_routed":
        return (_bars(name, own),)
    return _curves(name, key, own)


# ---- curves over what was swept ----


def _curves(name: str, key: _Key, own: Sequence[Swept]) -> tuple[Drawable, ...]:
    """Loss and its change over the swept value, a line per run with its untouched loss."""
    what = key[0]
    axis = Axis(KINDS[what][1], whole=what != "p")
    losses: list[Series] = []
    changes: list[Series] = []
    for one in own:
        swept = one.sweep.rows[:MOST_VALUES]
        x = np.array([place(at.value, one.sweep) for at in swept])
        order = np.argsort(x, kind="stable")
        rows = [swept[i] for i in order]
        untouched = np.full(len(rows), one.sweep.untouched.loss.mean)
        base = f"{one.view.name}, untouched"
        losses.append(series(base, one.view.index, x[order], untouched, "thin", hidden=True))
        losses.append(_line(one, x[order], rows, lambda at: at.loss))
        changes.append(_line(one, x[order], rows, lambda at: at.change))
    words = f"over {KINDS[what][1]} for {text.count(len(own), 'run')}."
    drawn = (("loss", LOSS, losses), ("change", CHANGE, changes))
    return tuple(
        Chart(
            f"{name}-{kind}",
            f"{_label(key)}: {kind}",
            f"Line chart of the {label} {words}",
            axis,
            Axis(label),
            tuple(lines),
        )
        for kind, label, lines in drawn
    )


def place(value: str, sweep: Sweep) -> float:
    """A swept value as a number: `2`, `0.4`, or a share `1/16` as that many experts of a layer.

    NaN for anything else; a share is the mean over layers that differ in their experts.
    """
    part, slash, whole = value.partition("/")
    try:
        if not slash:
            return float(part)
        share = float(part) / float(whole)
    except (ValueError, ZeroDivisionError):
        return float("nan")
    return float(np.floor(share * sweep.experts_L + 0.5).mean())


def _order(value: str, sweep: Sweep) -> tuple[float, str]:
    """By number; what is none comes last."""
    at = place(value, sweep)
    return (math.inf if math.isnan(at) else at), value


def _line(
    one: Swept, x: np.ndarray, rows: Sequence[Measured], of: Callable[[Measured], Estimate]
) -> Series:
    mean, low, high = _bounded([of(at) for at in rows])
    notes = [
        f"{at.value}: {of(at).mean:.4f} ({of(at).low:.4f} to {of(at).high:.4f}), "
        f"{at.active:.2f} experts, width {at.width:.0f}"
        for at in rows
    ]
    return series(one.view.name, one.view.index, x, mean, low=low, high=high, notes=notes)


def _bounded(found: Sequence[Estimate]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means with their ends; an end that is not known is the mean, a band of no width."""
    table = np.array([(at.mean, at.low, at.high) for at in found]).reshape(-1, 3)
    table = np.where(np.isfinite(table), table, table[:, :1])
    return table[:, 0], table[:, 1], table[:, 2]


# ---- the shared expert ----


def _bars(name: str, own: Sequence[Swept]) -> Chart:
    """Per run a bar for the untouched model and one for each number of routed experts added."""
    values = dict.fromkeys(at.value for one in own for at in one.sweep.rows)
    ordered = sorted(values, key=lambda value: _order(value, own[0].sweep))[:MOST_BARS]
    names = ["untouched", *(f"without, +{value} routed" for value in ordered)]
    bars = []
    for one in own:
        by_value = {at.value: at for at in one.sweep.rows}
        having = [(0, one.sweep.untouched)]
        having += [(i + 1, by_value[v]) for i, v in enumerate(ordered) if v in by_value]
        mean, low, high = _bounded([at.loss for _, at in having])
        x = [i for i, _ in having]
        bars.append(series(one.view.name, one.view.index, x, mean, "bars", low=low, high=high))
    ticks = tuple((float(i), label) for i, label in enumerate(names))
    return Chart(
        f"{name}-bars",
        KINDS["shared_for_routed"][0],
        f"Bars of the loss with and without the shared expert for {text.count(len(own), 'run')}.",
        Axis(KINDS["shared_for_routed"][1], ticks=ticks),
        Axis(LOSS, low=0.0),
        tuple(bars),
    )


# ---- one expert, or one layer, at a time ----


def _maps(name: str, what: str, own: Sequence[Swept]) -> Maps:
    """Layers by experts (or by what was swept), each cell the change of the loss."""
    grids = tuple(_grid(one) for one in own)
    found = np.concatenate([grid.value_RC[np.isfinite(grid.value_RC)] for grid in grids])
    top = float(np.quantile(np.abs(found), 0.98)) if found.size else 0.0
    scale = difference(tuple(f * (top or 1.0) for f in (0.1, 0.25, 0.5, 1.0)))
    return Maps(
        key=f"{name}-map",
        title=f"{KINDS[what][0]}, layer by layer",
        alt=f"Heat maps of the change of the loss for {text.count(len(own), 'run')}.",
        x=KINDS[what][1],
        y="layer",
        quantity=CHANGE,
        scale=scale,
        grids=grids,
        difference=scale,
    )


def _grid(one: Swept) -> Grid:
    sweep = one.sweep
    row_of = {int(layer): i for i, layer in enumerate(sweep.layers_L)}
    single = [at for at in sweep.rows if len(at.layers) == 1]
    # Columns are what was swept: of `drop_one` the experts that were dropped in any layer.
    values = dict.fromkeys(at.value for at in single)
    columns = tuple(sorted(values, key=lambda value: _order(value, sweep)))
    columns = columns[: max(1, MOST_CELLS // len(row_of))]
    column_of = {value: i for i, value in enumerate(columns)}
    value_RC = np.full((len(row_of), len(columns)), np.nan)
    for at in single:
        if at.value in column_of:
            value_RC[row_of[at.layers[0]], column_of[at.value]] = at.change.mean
    finite = value_RC[np.isfinite(value_RC)]
    worst = f"largest {finite.max():+.4f}" if finite.size else "no value"
    alt = (
        f"Heat map of the change of the loss for {one.view.name}: "
        f"{text.count(len(row_of), 'layer')} by {text.count(len(columns), 'column')}; {worst}."
    )
    return Grid(one.view.name, value_RC, tuple(map(str, row_of)), columns, alt)
