"""Runs that differ in nothing but their seed, taken together: means over seeds for the report."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

from moejax.analysis import tables, text
from moejax.analysis.html import Html, el
from moejax.analysis.intervals import Mean, mean_of
from moejax.analysis.provenance import flat_config
from moejax.analysis.sections import caption, link, section
from moejax.analysis.view import View

_CELL = re.compile(r"(^|,)seed=[0-9-]+-[0-9a-f]{10}$")
_TAIL = re.compile(r"[-_=,./ ]*(seed|s)?[-_=,./ ]*$")


@dataclasses.dataclass(frozen=True)
class SeedGroup:
    """Finished runs of one configuration; `loss` is nats per token, `bits` bits per byte."""

    name: str
    runs: tuple[View, ...]
    loss: Mean
    bits: Mean


def seed_groups(runs: Sequence[View]) -> list[SeedGroup]:
    """Comparable finished runs with a finite loss, by configuration, the lowest mean loss first.

    Names, work directories and the seed do not count. Of several runs with one seed, which repeat
    each other, the last stands for all.
    """
    found: dict[object, dict[str, View]] = {}
    for view in runs:
        if view.comparable and view.summary.state == "done" and math.isfinite(view.summary.loss):
            flat = flat_config(view.run)
            seed = repr([v for k, v in flat.items() if k.rpartition(".")[2] == "seed"])
            rest = tuple((k, v) for k, v in flat.items() if not _is_free(k))
            found.setdefault((rest, view.summary.tokens), {})[seed] = view
    groups = [_group(tuple(by_seed.values())) for by_seed in found.values()]
    return sorted(groups, key=lambda group: group.loss.mean)


def _is_free(key: str) -> bool:
    return key.rpartition(".")[2] in ("seed", "name", "workdir")


def _group(runs: tuple[View, ...]) -> SeedGroup:
    bits = [v.summary.bits_per_byte for v in runs if math.isfinite(v.summary.bits_per_byte)]
    return SeedGroup(
        name=_name([view.name for view in runs]),
        runs=runs,
        loss=mean_of([view.summary.loss for view in runs]),
        bits=mean_of(bits),
    )


def _name(names: Sequence[str]) -> str:
    """What the names have in common: of a grid's cells their axes, else how they begin."""
    cells = {_CELL.sub("", name) for name in names}
    if len(cells) == 1 and "" not in cells:
        return cells.pop()
    first, last = min(names), max(names)  # what these begin with alike, all between them do
    pairs = enumerate(zip(first, last, strict=False))
    length = next((i for i, (a, b) in pairs if a != b), min(len(first), len(last)))
    begin = _TAIL.sub("", first[:length])
    return begin or f"{names[0]} and {len(names) - 1} more"


def seeds_section(groups: Sequence[SeedGroup]) -> Html | None:
    """The table of means; None where no configuration has two seeds."""
    if all(len(group.runs) < 2 for group in groups):
        return None
    header = ("Configuration", "Seeds", "Loss", "± 95 %", "SD", "Bits per byte", "± 95 %")
    rows = [
        (
            el("span", text.shorten(group.name, 60), title=group.name),
            len(group.runs),
            text.fixed(group.loss.mean, 4),
            text.fixed(group.loss.half_width, 4),
            text.fixed(group.loss.sd, 4),
            text.fixed(group.bits.mean, 4),
            text.fixed(group.bits.half_width, 4),
        )
        for group in groups
    ]
    intro = (
        "Finished runs that differ in nothing but their seed, as one row: the mean of their "
        "validation losses and half of its 95 % interval (Student's t). One seed has no interval."
    )
    return section(
        "seeds",
        "Seeds",
        caption(intro),
        el("div", tables.table(header, rows, "Means over seeds"), cls="wrap"),
        el("div", link("data/seeds.csv", "CSV"), cls="more"),
    )


def seeds_rows(groups: Sequence[SeedGroup]) -> list[Sequence[object]]:
    """The same for a CSV, header first, full precision, with the names of the runs."""
    header = (
        "configuration", "seeds", "loss", "loss_half_width_95", "loss_sd", "bits_per_byte",
        "bits_per_byte_half_width_95", "runs",
    )  # fmt: skip
    rows = [
        (
            group.name,
            len(group.runs),
            group.loss.mean,
            group.loss.half_width,
            group.loss.sd,
            group.bits.mean,
            group.bits.half_width,
            " ".join(view.name for view in group.runs),
        )
        for group in groups
    ]
    return [header, *rows]
