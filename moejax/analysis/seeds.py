"""Runs that differ in nothing but their seed, taken together: means over seeds for the report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from moejax.analysis import text
from moejax.analysis.compare.treatments import common_name, seed_of, treatment_key
from moejax.analysis.intervals import Mean, mean_of
from moejax.analysis.page import tables
from moejax.analysis.page.html import Html, el
from moejax.analysis.page.sections import caption, link, section
from moejax.analysis.view import View


@dataclasses.dataclass(frozen=True)
class SeedGroup:
    """Finished runs of one configuration; `loss` is nats per token, `bits` bits per byte."""

    name: str
    runs: tuple[View, ...]
    loss: Mean
    bits: Mean


def seed_groups(runs: Sequence[View]) -> list[SeedGroup]:
    """Comparable finished runs with a finite loss, by configuration, the lowest mean loss first.

    Of several runs with one seed, which repeat each other, the last stands for all.
    """
    found: dict[str, dict[str, View]] = {}
    for view in runs:
        if view.comparable and view.summary.state == "done" and math.isfinite(view.summary.loss):
            # Without a config nothing says that two runs are of one configuration.
            key = treatment_key(view.run) or view.name
            found.setdefault(key, {})[seed_of(view.run)] = view
    groups = [_group(tuple(by_seed.values())) for by_seed in found.values()]
    return sorted(groups, key=lambda group: group.loss.mean)


def _group(runs: tuple[View, ...]) -> SeedGroup:
    bits = [v.summary.bits_per_byte for v in runs if math.isfinite(v.summary.bits_per_byte)]
    return SeedGroup(
        name=common_name([view.name for view in runs]),
        runs=runs,
        loss=mean_of([view.summary.loss for view in runs]),
        bits=mean_of(bits),
    )


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
