"""A study as a page of plain text for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from moejax.analysis import text
from moejax.analysis.scaling.allocation import Allocation
from moejax.analysis.scaling.architectures import Comparison
from moejax.analysis.scaling.determinacy import decades
from moejax.analysis.scaling.fitting import Estimate, Fit
from moejax.analysis.scaling.points import Dataset
from moejax.analysis.scaling.study import Approaches, Part, Study

WIDTH = 100


def page(study: Study) -> str:
    """All of it: the data, what they can tell, constants with intervals, and flags."""
    lines = [_data(study.dataset), *_marked("note", (*study.dataset.notes, *study.remarks))]
    if study.question.by_group:
        lines += _groups(study)
    else:
        lines += _one(study.parts[""], study.dataset.c_is)
    if study.refused:
        lines += _merged("refused", {g: (part.refused,) for g, part in study.parts.items()})
    return "\n".join(lines)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns set flush, the first to the left and the others to the right."""
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def number(value: float, digits: int = 4) -> str:
    """Four significant digits; k, M, G, T from 10,000 on, powers of ten beyond; inf; a dash."""
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if not math.isfinite(value):
        return text.MISSING
    if abs(value) >= 1e15 or 0 < abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    return text.short(value, digits) if abs(value) >= 1e4 else f"{value:.{digits}g}"


def shown(one: Estimate, digits: int = 4) -> str:
    """`0.34 [0.33, 0.35]`, or the number alone where it has no interval."""
    value = number(one.value, digits)
    if not one.known:
        return value
    return f"{value} [{number(one.low, digits)}, {number(one.high, digits)}]"


def _marked(word: str, lines: Sequence[str]) -> list[str]:
    return [f"{word:<9} {line}" for line in lines]


def _data(dataset: Dataset) -> str:
    points = dataset.points
    spans = []
    for name in ("n", "d", "c", "e", "g", "a"):
        column = points.column(name)
        column = column[np.isfinite(column)]
        if column.size:
            span = f" ({decades(column):.2f} decades)" if name in "ndc" else ""
            bounds = f"{number(float(column.min()))} to {number(float(column.max()))}"
            spans.append(f"{name.upper()} {bounds}{span}")
    groups = f", {text.count(len(points.groups), 'group')}" if len(points.groups) > 1 else ""
    lines = [
        f"data      {text.count(len(points), 'run')}, {text.count(len(points.cells), 'cell')}"
        f"{groups}; sha256 {points.digest()[:12]}",
        f"          {', '.join(spans)}",
    ]
    made = [f"{name.upper()}: {what}" for name, what in (("n", dataset.n_is), ("c", dataset.c_is))
            if points.has(name)]  # fmt: skip
    if made:
        lines.append(f"          {'; '.join(made)}")
    if dataset.excluded:
        first = "; ".join(f"{name}: {why}" for name, why in dataset.excluded[:3])
        more = len(dataset.excluded) - 3
        tail = f"; and {more} more (--json has all)" if more > 0 else ""
        lines.append(f"left out  {len(dataset.excluded)}: {first}{tail}")
    return "\n".join(lines)


def _fit(one: Fit, flags: Sequence[str]) -> Iterator[str]:
    yield f"{one.law.formula}   ({_method(one)})"
    rows = [
        (name, number(e.value), number(e.low), number(e.high)) for name, e in one.estimates.items()
    ]
    yield from table(("constant", "value", "95 % from", "to"), rows)
    yield _quality(one)
    yield from _marked("flag", flags)


def _method(one: Fit) -> str:
    if one.options.method == "vp":
        return "least squares of relative errors, variable projection"
    delta = one.law.delta if one.options.delta is None else one.options.delta
    return f"Huber's loss on ln L, delta {delta:g}, sum"


def _quality(one: Fit) -> str:
    held = one.held
    largest = (
        f"largest {held.column.upper()} predicted by the rest: {100 * held.worst:+.2f} %"
        if held.error_I.size
        else f"largest left out: {held.why_not}"
    )
    return (
        f"misfit {100 * one.rmse:.3g} % rms; {largest}; {one.reached} of {one.starts} starts "
        f"agree; condition {one.condition:.3g} (searched: {one.condition_searched:.3g}); "
        f"{one.clusters} clusters - {one.rank} parameters = {one.freedom} degrees of freedom"
    )


def _one(part: Part, c_is: str) -> list[str]:
    lines = ["", *_fit(part.fit, part.flags)] if part.fit is not None else []
    rest = _consequences(part, c_is)
    return [*lines, "", *rest] if rest else lines


def _consequences(part: Part, c_is: str) -> list[str]:
    lines: list[str] = []
    if part.approaches is not None:
        lines += _approaches(part, part.approaches)
    if part.allocation is not None:
        lines += [*([""] if lines else []), *_allocation(part.allocation, c_is)]
    return lines


def _approaches(part: Part, found: Approaches) -> Iterator[str]:
    words = {"vp": "3, variable projection", "huber": "3, Huber on ln L"}
    rows: list[tuple[str, Estimate, Estimate, str]] = []
    for one, best in ((part.fit, part.allocation), (found.other, found.other_allocation)):
        if one is not None and best is not None:
            rows.append((words[one.options.method], best.n_exponent, best.d_exponent, ""))
    for name, way in (("2, IsoFLOP parabolas", found.isoflop), ("1, envelope", found.envelope)):
        rows.append((name, way.n_exponent, way.d_exponent, way.why_not))
    done = [(name, shown(n), shown(d)) for name, n, d, why in rows if not why]
    if done:
        yield from table(("approach", "N* ~ C^", "D* ~ C^"), done)
    yield from _marked("note", [f"approach {name}: {why}" for name, _, _, why in rows if why])
    if not found.envelope.why_not:
        line = (
            "approach 1 takes a point inside a run for a run that ends there: biased unless the "
            "learning rate is constant or each size was trained to several ends"
        )
        yield from _marked("note", [line])
    if not found.isoflop.why_not:
        size = (
            ""
            if math.isnan(found.isoflop_bias)
            else f": on noise-free losses of the fit it errs by {found.isoflop_bias:+.3f} for N*"
        )
        line = "approach 2 is biased where alpha and beta differ or sizes lie off-centre"
        yield from _marked("note", [line + size])


def _allocation(one: Allocation, c_is: str) -> Iterator[str]:
    at = "".join(
        f", at {name} = {number(value)}"
        for name, value in (("E", one.e), ("G", one.g))
        if math.isfinite(value)
    )
    yield f"compute-optimal N and D{at}"
    rows = [
        (
            number(best.budget),
            shown(best.n, 3),
            shown(best.d, 3),
            shown(best.loss),
            _beyond(best.beyond),
        )
        for best in one.optima
    ]
    yield from table(("C (FLOPs)", "N*", "D* (tokens)", "loss", ""), rows)
    model = f"C / D = {number(one.compute.factor)} N^{one.compute.power:.3f}"
    if abs(one.compute.power - 1) < 1e-9:
        model = f"C / D = {number(one.compute.factor)} N"
    yield from _marked("note", [f"{model} within {100 * one.compute.worst:.1f} % ({c_is})"])


def _beyond(beyond: float) -> str:
    return "in the data" if beyond <= 1 + 1e-9 else f"{number(beyond, 3)} x beyond the data"


def _groups(study: Study) -> list[str]:
    lines: list[str] = []
    own = {group: part.fit for group, part in study.parts.items() if part.fit is not None}
    if own:
        lines += ["", *_own(own)]
    refused = {group: (part.refused,) for group, part in study.parts.items() if part.refused}
    if not study.refused:  # else this is the last that the page says
        lines += _merged("refused", refused)
    lines += _merged("flag", {group: part.flags for group, part in study.parts.items()})
    if study.comparison is not None:
        lines += _comparison(study.comparison)
    for group, part in study.parts.items():
        if part.approaches is not None or part.allocation is not None:
            lines += ["", f"{group}:", *_consequences(part, study.dataset.c_is)]
    return lines


def _own(own: Mapping[str, Fit]) -> Iterator[str]:
    first = next(iter(own.values()))
    yield f"each group alone: {first.law.formula}   ({_method(first)})"
    names = first.names
    rows = [
        [
            group,
            *(shown(one.estimates[name]) for name in names),
            f"{100 * one.rmse:.2g} %",
            f"{100 * one.held.worst:+.2f} %" if one.held.error_I.size else text.MISSING,
            number(one.condition, 3),
            str(one.freedom),
        ]
        for group, one in own.items()
    ]
    yield from table(("group", *names, "misfit", "held out", "condition", "df"), rows)


def _comparison(groups: Comparison) -> list[str]:
    lines: list[str] = []
    if groups.shared is not None:
        lines += ["", *_shared(groups.shared), *_marked("flag", groups.shared_flags)]
    elif groups.why_not_shared:
        lines += _marked("note", [f"no shared floor: {groups.why_not_shared}"])
    if groups.pins:
        lines += ["", *_pins(groups)]
    if groups.differences:
        lines += ["", f"minus {groups.baseline}"]
        rows = [
            [f"{d.name} of {d.group}", d.floor, shown(d.estimate), d.verdict]
            for d in groups.differences
        ]
        lines += table(("difference", "floor", "95 % interval", "verdict"), rows)
    if groups.leverage:
        lines += ["", f"efficiency leverage: FLOPs of {groups.baseline} / FLOPs, at equal loss"]
        rows = [
            [
                one.group,
                one.floor,
                number(one.c),
                number(one.loss),
                shown(one.estimate, 3),
                "" if one.inside else "extrapolated",
            ]
            for one in groups.leverage
        ]
        lines += table(("group", "floor", "C (FLOPs)", "loss", "leverage", ""), rows)
    return lines


def _merged(word: str, by_group: Mapping[str, Sequence[str]]) -> list[str]:
    """Lines with the groups that they are about; one that several share stands once."""
    by_line: dict[str, list[str]] = {}
    for group, lines in by_group.items():
        for line in lines:
            by_line.setdefault(line, []).append(group)
    return _marked(word, [f"{'; '.join(who)}: {line}" if any(who) else line
                          for line, who in by_line.items()])  # fmt: skip


def _shared(one: Fit) -> Iterator[str]:
    estimates = one.estimates
    floor = next(iter(estimates))
    yield f"one floor for all: {floor} = {shown(estimates[floor])}"
    groups = list(dict.fromkeys(name.split("[", 1)[1][:-1] for name in estimates if "[" in name))
    names = list(dict.fromkeys(name.split("[", 1)[0] for name in estimates if "[" in name))
    rows = [[g, *(shown(estimates[f"{name}[{g}]"]) for name in names)] for g in groups]
    yield from table(("group", *names), rows)
    yield _quality(one).replace("largest left out: not asked for; ", "")


def _pins(groups: Comparison) -> Iterator[str]:
    names = list(groups.pins[0].exponents)
    members = list(groups.pins[0].exponents[names[0]])
    yield "exponents with the floor pinned"
    header = ["floor", *(f"{name} {group}" for name in names for group in members), "misfit"]
    rows = [
        [
            number(pin.floor),
            *(f"{pin.exponents[name][group]:.4f}" for name in names for group in members),
            f"{100 * pin.rmse:.2g} %",
        ]
        for pin in groups.pins
    ]
    yield from table(header, rows)
