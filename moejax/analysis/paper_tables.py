"""The tables that a paper takes: which columns, rounded for reading. Written by `exports`."""

from __future__ import annotations

from collections.abc import Sequence

from moejax.analysis import text
from moejax.analysis.compare import Comparison
from moejax.analysis.evidence import Evidence, Scaling
from moejax.analysis.finetuning import section as finetuned
from moejax.analysis.page.tables import COLUMNS
from moejax.analysis.seeds import SeedGroup

Rows = list[Sequence[object]]


def paper_tables(evidence: Evidence, seeds: Sequence[SeedGroup]) -> dict[str, tuple[str, Rows]]:
    """Key of the files -> (caption, rows with the header first)."""
    heads = ("Run", "State", *(column.head for column in COLUMNS))
    run_rows: Rows = [
        (v.name, v.summary.state, *(column.show(v.summary) for column in COLUMNS))
        for v in evidence.runs
    ]
    seed_rows: Rows = [
        (
            group.name,
            len(group.runs),
            _plus_minus(group.loss.mean, group.loss.half_width),
            _plus_minus(group.bits.mean, group.bits.half_width),
        )
        for group in seeds
    ]
    seed_heads = ("Configuration", "Seeds", "Validation loss", "Bits per byte")
    found = {
        "runs": ("Runs, final or newest values.", [heads, *run_rows]),
        "seeds": (
            "Means over seeds with half of their 95 % t interval.",
            [seed_heads, *seed_rows],
        ),
    }
    for comparison in evidence.comparisons:
        key = f"comparison-{comparison.at}"
        length = sum(other.startswith(key) for other in found)
        found[key if not length else f"{key}-{length + 1}"] = _comparison(comparison)
    if evidence.finetuning.cells:
        found["finetuning"] = finetuned.CAPTION, finetuned.rows(evidence.finetuning)
    if isinstance(evidence.scaling, Scaling) and not evidence.scaling.power.refused:
        found["scaling"] = _constants(evidence.scaling)
    return found


def _comparison(comparison: Comparison) -> tuple[str, Rows]:
    caption = (
        f"Validation loss at equal {comparison.at}, against {comparison.baseline}, with 95 % "
        "intervals. Multipliers are what the baseline needs for an equal loss over what the "
        "configuration needs."
    )
    heads = (
        "Configuration", "Seeds", "Total", "Active", "FLOPs per token", "Loss", "Difference",
        "Verdict", "Compute multiplier", "Speedup",
    )  # fmt: skip
    rows: Rows = [heads]
    for row in comparison.rows:
        gap, equal = row.difference, row.equal_loss
        rows.append(
            (
                row.name,
                row.loss.n,
                text.short(row.size.total_parameters),
                text.short(row.size.measured_active_parameters),
                text.short(row.size.measured_flops_per_token),
                _plus_minus(row.loss.mean, row.loss.half_width),
                _plus_minus(gap.mean.mean, gap.mean.half_width) if gap else text.MISSING,
                gap.verdict if gap else "baseline",
                text.fixed(equal.compute.mean, 2) if equal else text.MISSING,
                text.fixed(equal.speedup.mean, 2) if equal else text.MISSING,
            )
        )
    return caption, rows


def _constants(scaling: Scaling) -> tuple[str, Rows]:
    digest = scaling.power.dataset.points.digest()[:12]
    rows: Rows = [("Group", "Runs", "Constant", "Value", "Low", "High", "Residual, %")]
    for group, part in scaling.power.parts.items():
        if part.fit is None:
            rows.append((group, None, f"not fitted: {part.refused}", None, None, None, None))
            continue
        for name, at in part.fit.estimates.items():
            numbers = (at.value, at.low, at.high, 100 * part.fit.rmse)
            rows.append((group, len(part.fit.points), name, *numbers))
    law = scaling.power.question.law.formula
    return f"Constants of {law} with 95 % intervals; data {digest}.", rows


def _plus_minus(mean: float, half: float) -> str:
    return f"{text.fixed(mean, 4)} ± {text.fixed(half, 4)}" if half == half else text.fixed(mean, 4)
