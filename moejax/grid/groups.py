"""Groups of cells: one number each over seeds, and paired differences from the best."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence

from moejax.analysis.compare.noise import by_interval, paired
from moejax.analysis.intervals import Mean, mean_of
from moejax.config import ConfigError, nearest
from moejax.grid.record import RecordedCell
from moejax.grid.results import Result, Results
from moejax.grid.sweep import SEED

AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "mean±ci": lambda values: mean_of(values).mean,
    "mean±sd": lambda values: mean_of(values).mean,
    "median": lambda values: float(statistics.median(values)),
    "min": min,
    "max": max,
}
"""What a group is ranked by. `mean±ci` shows the 95 % t interval, `mean±sd` the deviation."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric by name; `up`: more of it is better."""

    name: str
    up: bool = False


@dataclasses.dataclass(frozen=True)
class Group:
    """Cells with the same labels of the axes grouped by.

    Attributes:
      labels: axis -> label ("" where the cells lack the axis).
      cells: how many the grid has; `results`: those that are done.
      over: other axes that differ inside the group, which its mean is also over.
      values: metric -> aggregate; NaN for an empty group.
      means: metric -> mean, deviation and interval.
      difference: of the first metric from the best group, paired by seed and the other axes.
      verdict: whether that difference can be told from noise: its interval holds 0 or not.
    """

    labels: dict[str, str]
    cells: int
    results: tuple[Result, ...]
    over: tuple[str, ...]
    values: dict[str, float]
    means: dict[str, Mean]
    difference: Mean | None = None
    verdict: str = ""


def parse_metrics(text: str) -> tuple[Metric, ...]:
    """`eval/loss,perf/tokens_per_second:max`; without `:max` less is better.

    Raises:
      ConfigError: an empty name or another word behind the colon.
    """
    found = []
    for part in text.split(","):
        name, colon, word = part.strip().partition(":")
        if not name or (colon and word not in ("min", "max")):
            raise ConfigError(f"--by={text}: expected METRIC[:min|:max], with commas")
        found.append(Metric(name, word == "max"))
    return tuple(found)


def parse_axes(text: str, cells: Sequence[RecordedCell]) -> tuple[str, ...]:
    """Axes of `--group=a,b`; all treatment axes if it is empty.

    Raises:
      ConfigError: an axis that no cell has.
    """
    known = list(dict.fromkeys(axis for cell in cells for axis in cell.axes))
    if not text:
        return tuple(known)
    wanted = tuple(part.strip() for part in text.split(","))
    for axis in wanted:
        if axis not in known:
            hint = nearest(axis, known) or f"; axes: {', '.join(known) or 'none'}"
            raise ConfigError(f"--group={text}: unknown axis {axis!r}{hint}")
    return wanted


def group(
    cells: Sequence[RecordedCell],
    results: Results,
    axes: Sequence[str],
    metrics: Sequence[Metric],
    aggregate: str,
) -> list[Group]:
    """Groups, the best first by the first metric; those without a finished cell last.

    Raises:
      ConfigError: an unknown aggregate.
    """
    if aggregate not in AGGREGATES:
        known = ", ".join(AGGREGATES)
        raise ConfigError(f"--agg={aggregate}: unknown aggregate; known: {known} (± may be +-)")
    members: dict[tuple[str, ...], list[RecordedCell]] = {}
    for cell in cells:
        if not cell.vanished:
            key = tuple(cell.axes.get(axis, "") for axis in axes)
            members.setdefault(key, []).append(cell)
    by_directory = {one.cell.directory: one for one in results.done}
    made = [
        _group(key, own, axes, metrics, aggregate, by_directory) for key, own in members.items()
    ]
    first = metrics[0]
    sign = -1.0 if first.up else 1.0
    finished = [one for one in made if one.results]
    finished.sort(key=lambda one: sign * one.values[first.name])
    ranked = [_against(finished[0], one, first.name) for one in finished]
    return ranked + [one for one in made if not one.results]


def _group(
    key: tuple[str, ...],
    cells: Sequence[RecordedCell],
    axes: Sequence[str],
    metrics: Sequence[Metric],
    aggregate: str,
    done: dict[str, Result],
) -> Group:
    own = tuple(done[cell.directory] for cell in cells if cell.directory in done)
    others = dict.fromkeys(axis for cell in cells for axis in cell.axes if axis not in axes)
    over = tuple(axis for axis in others if len({cell.axes.get(axis) for cell in cells}) > 1)
    columns = {
        metric.name: [v for one in own if math.isfinite(v := one.values[metric.name])]
        for metric in metrics
    }
    return Group(
        labels=dict(zip(axes, key, strict=True)),
        cells=len(cells),
        results=own,
        over=over,
        values={
            name: AGGREGATES[aggregate](values) if values else math.nan
            for name, values in columns.items()
        },
        means={name: mean_of(values) for name, values in columns.items()},
    )


def _against(best: Group, one: Group, metric: str) -> Group:
    """The group with its paired difference from the best one."""
    if one is best:
        return one
    difference = mean_of(list(paired(_by_pair(one, metric), _by_pair(best, metric)).values()))
    return dataclasses.replace(one, difference=difference, verdict=by_interval(difference))


def _by_pair(one: Group, metric: str) -> dict[tuple[tuple[str, str], ...], float]:
    """Values by seed and the labels that the group does not fix: same data order, same weights."""
    found = {}
    for result in one.results:
        others = {k: v for k, v in result.cell.axes.items() if k not in one.labels}
        key = tuple(sorted((others | {SEED: str(result.cell.seed)}).items()))
        found[key] = result.values[metric]
    return found
