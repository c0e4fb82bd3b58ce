"""The table of runs, and small tables: HTML by `html.el`, so everything is escaped."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from moejax.analysis import text
from moejax.analysis.page.html import Html, el
from moejax.analysis.page.keys import run_key
from moejax.analysis.summary import Summary
from moejax.analysis.view import View


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the runs table: `better` is -1 (low), 1 (high) or 0 (neither is better)."""

    field: str
    head: str
    help: str
    show: Callable[[Summary], str]
    better: int = 0


def _counted(s: Summary) -> str:
    if not s.moe:
        return text.MISSING
    return (
        f"{int(s.dead_experts)} of {int(s.experts)}"
        if math.isfinite(s.dead_experts)
        else text.MISSING
    )


def _active(s: Summary) -> str:
    if not s.moe:
        return text.MISSING
    nominal = s.nominal_active_experts
    return text.fixed(s.active_experts, 2) + (f" ({nominal:.3g})" if math.isfinite(nominal) else "")


COLUMNS = (
    Column(
        "loss",
        "Loss",
        "validation loss, nats per token, lower is better",
        lambda s: text.fixed(s.loss),
        -1,
    ),
    Column("perplexity", "Perplexity", "exp(loss)", lambda s: text.fixed(s.perplexity, 2), -1),
    Column(
        "bits_per_byte",
        "Bits per byte",
        "loss per byte of text: comparable between tokenizers",
        lambda s: text.fixed(s.bits_per_byte),
        -1,
    ),
    Column(
        "total_parameters",
        "Total params",
        "all parameters",
        lambda s: text.short(s.total_parameters),
    ),
    Column(
        "nominal_active",
        "Active, nominal",
        "parameters used per token as configured",
        lambda s: text.short(s.nominal_active),
    ),
    Column(
        "measured_active",
        "Active, measured",
        "parameters used per token, counted from the experts that tokens really chose",
        lambda s: text.short(s.measured_active),
    ),
    Column(
        "flops_per_token",
        "FLOPs per token",
        "measured active training FLOPs per token (forward and backward), at the last evaluation",
        lambda s: text.short(s.flops_per_token),
    ),
    Column(
        "active_experts",
        "Active experts",
        "routed experts per token and MoE layer, measured (nominal in brackets)",
        _active,
    ),
    Column(
        "active_width",
        "Active width",
        "hidden units of routed experts per token and MoE layer, measured",
        lambda s: text.fixed(s.active_width, 0) if s.moe else text.MISSING,
    ),
    Column(
        "load_max_over_mean",
        "Load max/mean",
        "busiest expert over a balanced share, mean over layers; 1 is balanced, above 2 is bad",
        lambda s: text.fixed(s.load_max_over_mean, 2) if s.moe else text.MISSING,
        -1,
    ),
    Column("dead_experts", "Dead experts", "experts that no validation token chose", _counted, -1),
    Column(
        "drop_fraction",
        "Dropped",
        "assignments asked for and not computed",
        lambda s: text.percent(s.drop_fraction, 2) if s.moe else text.MISSING,
        -1,
    ),
    Column("tokens", "Tokens", "training tokens seen", lambda s: text.short(s.tokens)),
    Column(
        "tokens_per_second",
        "Tokens per s",
        "median training speed on this run's machine",
        lambda s: text.short(s.tokens_per_second),
    ),
    Column(
        "elapsed", "Time", "training time over all attempts", lambda s: text.duration(s.elapsed)
    ),
)

_PER_TOKEN = ("loss", "perplexity")  # compare with the same tokenizer only


def runs_table(runs: Sequence[View]) -> Html:
    """The table of runs; the best of a column (among comparable runs) is marked."""
    best = {c.field: _best(runs, c) for c in COLUMNS if c.better}
    heads = [el("th", "Run", scope="col"), el("th", "State", scope="col")]
    heads += [el("th", c.head, scope="col", cls="n", title=c.help) for c in COLUMNS]
    rows = (_run_row(view, best) for view in runs)
    whole = el("table", el("thead", el("tr", *heads)), el("tbody", *rows), cls="runs")
    return box(whole, "Table of runs")


def _run_row(view: View, best: dict[str, float]) -> Html:
    s = view.summary
    name = el(
        "span",
        text.shorten(view.name, 40),
        el("small", s.kind) if s.kind else None,
        title=view.name,
    )
    head = el("span", run_key(view.index), name, cls="name")
    cells = [
        el("th", head, scope="row", data_v=view.name),
        el("td", state_badge(s.state), data_v=s.state),
    ]
    for column in COLUMNS:
        value = float(getattr(s, column.field))
        ranked = _comparable(view, column)
        marked = bool(column.better) and ranked and value == best[column.field]
        order = value if math.isfinite(value) else ""
        cells.append(el("td", column.show(s), cls="n best" if marked else "n", data_v=order))
    return el("tr", *cells)


def _comparable(view: View, column: Column) -> bool:
    if column.field in _PER_TOKEN:
        return view.comparable
    return view.same_text or column.field != "bits_per_byte"


def _best(runs: Sequence[View], column: Column) -> float:
    values = [float(getattr(v.summary, column.field)) for v in runs if _comparable(v, column)]
    values = [v for v in values if math.isfinite(v)]
    # A best of one run, or of equal runs, is no finding.
    if len(set(values)) < 2:
        return math.nan
    return min(values) if column.better < 0 else max(values)


def state_badge(state: str) -> Html:
    """A run's state as a badge: sign and word, not colour alone."""
    known = {"done": "✓", "running": "…", "failed": "!", "interrupted": "‖"}
    sign = el("i", known.get(state, "?"), aria_hidden="true")
    return el("span", sign, " ", state, cls=f"badge {state if state in known else 'unknown'}")


def table(header: Sequence[object], rows: Sequence[Sequence[object]], label: str) -> Html:
    """A plain table in its own scrolling box; numbers are right-aligned."""
    head = el("tr", *(el("th", h, scope="col") for h in header))
    body = (el("tr", *map(_cell, row)) for row in rows)
    return box(el("table", el("thead", head), el("tbody", *body)), label)


def _cell(value: object) -> Html:
    if value is None:
        return el("td")
    if isinstance(value, Html):
        return el("td", value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        shown = f"{value:,}" if isinstance(value, int) else text.MISSING
        if isinstance(value, float) and math.isfinite(value):
            shown = f"{value:,.5g}"
        return el("td", shown, cls="n")
    return el("td", text.clean(value, 200))


def box(inner: Html, label: str) -> Html:
    """A box that scrolls by itself: reachable by keyboard, hence the tabindex, role and name."""
    return el("div", inner, cls="scroll", tabindex=0, role="region", aria_label=label)


def summary_rows(runs: Sequence[View]) -> list[Sequence[object]]:
    """The table of runs as CSV rows, header first: every number of `Summary`, and the directory."""
    names = [field.name for field in dataclasses.fields(Summary)]
    rows = [
        (v.name, *(getattr(v.summary, n) for n in names), text.clean(v.run.root.name)) for v in runs
    ]
    return [("run", *names, "directory"), *rows]
