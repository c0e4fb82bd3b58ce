"""A comparison as JSON, as CSV rows and as Markdown."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from moejax.analysis import text
from moejax.analysis.compare.comparison import Comparison, Row, ToTarget
from moejax.analysis.compare.curves import amount
from moejax.analysis.compare.equal_loss import EqualLoss
from moejax.analysis.compare.noise import Difference
from moejax.analysis.compare.ratios import NO_RATIO, Ratio
from moejax.analysis.intervals import Mean

FORMAT_VERSION = 1
_NO_MEAN = Mean(0, math.nan, math.nan, math.nan)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Everything, with `format_version`; what is not known is null."""
    return {"format_version": FORMAT_VERSION} | _plain(dataclasses.asdict(comparison))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table_rows(comparison: Comparison) -> list[Sequence[object]]:
    """A row per treatment for a CSV, header first, full precision."""
    rows = [_flat(row) for row in comparison.rows]
    return [tuple(rows[0]), *(tuple(row.values()) for row in rows)]


def reading_rows(comparison: Comparison) -> list[Sequence[object]]:
    """A row per run that was read at the budget, header first."""
    rows: list[Sequence[object]] = [
        ("treatment", "run", "seed", "loss", "tokens", "flops", "seconds", "schedule", "at_peak")
    ]
    rows += [(row.name, *dataclasses.astuple(r)) for row in comparison.rows for r in row.readings]
    return rows


def excluded_rows(comparison: Comparison) -> list[Sequence[object]]:
    """A row per run that was left out, header first."""
    return [("run", "cause", "reason"), *map(dataclasses.astuple, comparison.excluded)]


def _flat(row: Row) -> dict[str, object]:
    difference, equal, leverage = row.difference, row.equal_loss, row.leverage
    flat: dict[str, object] = {"treatment": row.name, "kind": row.kind, "runs": len(row.runs)}
    flat |= dataclasses.asdict(row.size)
    flat |= _mean("loss", row.loss)
    flat["schedule"] = min((r.schedule for r in row.readings), default=math.nan)
    flat |= _mean("difference", difference.mean if difference else _NO_MEAN)
    flat["difference_least"] = difference.least if difference else math.nan
    flat["verdict"] = difference.verdict if difference else ""
    flat["judged_by"] = difference.rule if difference else ""
    flat["reached_target"] = row.to_target.reached
    flat |= _mean("tokens_to_target", row.to_target.tokens)
    flat |= _mean("flops_to_target", row.to_target.flops)
    flat |= _mean("seconds_to_target", row.to_target.seconds)
    flat["equal_loss"] = equal.loss if equal else math.nan
    flat["equal_loss_by"] = equal.how if equal else ""
    flat["equal_loss_schedule"] = equal.schedule if equal else math.nan
    flat |= _ratio("token_multiplier", equal.tokens if equal else NO_RATIO)
    flat |= _ratio("compute_multiplier", equal.compute if equal else NO_RATIO)
    flat |= _ratio("effective_speedup", equal.speedup if equal else NO_RATIO)
    flat |= _ratio("efficiency_leverage", leverage.compute if leverage else NO_RATIO)
    flat["tokens_per_second"] = row.tokens_per_second
    flat["spike_score"] = row.spike_score
    return flat


def _mean(name: str, mean: Mean) -> dict[str, object]:
    return {
        name: mean.mean,
        f"{name}_n": mean.n,
        f"{name}_sd": mean.sd,
        f"{name}_half_width_95": mean.half_width,
    }


def _ratio(name: str, ratio: Ratio) -> dict[str, object]:
    return {name: ratio.mean, f"{name}_low_95": ratio.low, f"{name}_high_95": ratio.high}


# ---- Markdown ------------------------------------------------------------------------------------

_Show = Callable[[Row], str]


def markdown(comparison: Comparison) -> str:
    """A table, what it rests on, and what was left out; names of runs cannot become markup."""
    c = comparison
    columns: list[tuple[str, _Show]] = [
        ("", lambda row: _safe(text.shorten(row.name, 40))),
        ("runs", lambda row: str(len(row.runs))),
        ("params", lambda row: text.short(row.size.total_parameters)),
        ("active", lambda row: text.short(_first(row.size.measured_active_parameters, row))),
        ("FLOP/token", lambda row: text.short(row.size.spent_flops_per_token)),
        ("loss", lambda row: _plus_minus(row.loss)),
        ("minus baseline", lambda row: _difference(row.difference)),
        ("verdict", lambda row: row.difference.verdict if row.difference else ""),
        (f"tokens to {c.target:.4g}", lambda row: _to_target(row.to_target)),
        ("compute multiplier", lambda row: _times(row.equal_loss, "compute")),
        ("effective speedup", lambda row: _times(row.equal_loss, "speedup")),
        ("spikes", lambda row: text.percent(row.spike_score, 2)),
    ]
    if c.dense != c.baseline and any(row.leverage for row in c.rows):
        head = f"efficiency leverage over {_safe(c.dense)}"
        columns.insert(-1, (head, lambda row: _times(row.leverage, "compute")))
    lines = [
        f"At {amount(c.at, c.budget)}, compared with {_safe(c.baseline)}:",
        "",
        *_table([head for head, _ in columns], [[f(row) for _, f in columns] for row in c.rows]),
        "",
        _floor(c),
        *(f"{_safe(note)}" for note in c.notes),
    ]
    if c.excluded:
        lines += ["", "Left out:", ""]
        lines += [f"- {_safe(e.run)}: {_safe(e.reason)}" for e in c.excluded]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    sides = [str.ljust, *[str.rjust] * (len(head) - 1)]

    def line(cells: Sequence[str]) -> str:
        parts = zip(cells, widths, sides, strict=True)
        return "| " + " | ".join(side(cell, width) for cell, width, side in parts) + " |"

    rule = [f"{'-' * (w - (i > 0))}{':' * (i > 0)}" for i, w in enumerate(widths)]
    return [line(head), line(rule), *map(line, rows)]


def _safe(value: str) -> str:
    """Text of strangers: what Markdown or HTML would take for markup is escaped."""
    return re.sub(r"([\\`*\[\]<>|&~$])", r"\\\1", text.clean(value))


def _first(measured: float, row: Row) -> float:
    return measured if math.isfinite(measured) else row.size.active_parameters


def _plus_minus(mean: Mean) -> str:
    if not mean.n:
        return "left out"
    return _with(text.fixed(mean.mean, 4), mean.half_width)


def _difference(difference: Difference | None) -> str:
    if difference is None or math.isnan(difference.mean.mean):
        return ""
    return _with(f"{difference.mean.mean:+.4f}", difference.mean.half_width)


def _with(shown: str, half_width: float) -> str:
    return f"{shown} ± {text.fixed(half_width, 4)}" if math.isfinite(half_width) else shown


def _to_target(found: ToTarget) -> str:
    if found.reached == found.runs:
        return text.short(found.tokens.mean)
    return f"{found.why} ({found.reached} of {found.runs})" if found.runs > 1 else found.why


def _times(found: EqualLoss | None, name: str) -> str:
    if found is None:
        return ""
    ratio: Ratio = getattr(found, name)
    if not math.isfinite(ratio.mean):
        return text.MISSING
    shown = f"{ratio.mean:.3g}"
    interval = f" ({ratio.low:.3g} to {ratio.high:.3g})"
    return shown + interval if math.isfinite(ratio.low) else shown


def _floor(c: Comparison) -> str:
    if not c.noise.degrees:
        return "± is half of a 95 % t interval over seeds, where there are several."
    pair = text.fixed(c.noise.least_difference(1, 1), 4)
    return (
        f"± is half of a 95 % t interval over seeds. Noise floor: standard deviation "
        f"{text.fixed(c.noise.sd, 4)} nats per token between seeds "
        f"({text.count(c.noise.degrees, 'degree')} of freedom), so two single runs must differ by "
        f"{pair}."
    )
