"""Axes and what combines them: a grid's treatments as a list of points, checked as it is made.

A *point* says what one cell changes: a label for each axis, and values of keys. A key is a dotted
key of the config (`model.moe.router.p`), or `{name}`, a hole in the config's argument
(`configs/lm.py:size=tiny,moe={moe}`). Every function returns `Axes`, takes them again, and keeps
the order of the points.
"""

from __future__ import annotations

import builtins
import collections
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from moejax.config import ConfigError, nearest
from moejax.config.compose import dump
from moejax.config.registry import registered_name

Match = Mapping[str, Any] | Callable[[dict[str, str]], bool]


@dataclasses.dataclass(frozen=True)
class Point:
    """One combination: `labels` of its axes and `values` of the keys it sets."""

    labels: dict[str, str]
    values: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Axes:
    """A list of points, never empty."""

    points: tuple[Point, ...]

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self) -> Iterator[Point]:
        return iter(self.points)

    @property
    def names(self) -> tuple[str, ...]:
        """Every axis that some point has, in order of appearance."""
        return tuple(dict.fromkeys(name for point in self.points for name in point.labels))

    def labels(self, axis: str) -> tuple[str, ...]:
        """Labels of an axis, in order of appearance."""
        found = (point.labels[axis] for point in self.points if axis in point.labels)
        return tuple(dict.fromkeys(found))


def axis(key: str, values: Sequence[Any] | Mapping[str, Any], name: str = "") -> Axes:
    """One key, and the values it takes.

    Args:
      key: `model.moe.router.p`, or `{moe}` for a hole of the config's argument.
      values: a list, labelled by themselves, or a mapping from label to value. A dict with `name`,
        or a dataclass, is a whole section such as a router.
      name: the axis' name; default: the last part of the key.

    Raises:
      ConfigError: no values, a value that cannot be labelled, two values with one label.
    """
    name = name or key.strip("{}").rpartition(".")[2]
    if isinstance(values, str) or not isinstance(values, Mapping | Sequence):
        raise ConfigError(f"axis {name!r}: needs a list of values, got {values!r}")
    if isinstance(values, Mapping):
        return variants(name, {label: {key: value} for label, value in values.items()})
    pairs = [(_label(value, name), value) for value in values]
    count = collections.Counter(label for label, _ in pairs)
    twice = [label for label in count if count[label] > 1]
    if twice:
        raise ConfigError(
            f"axis {name!r}: two values are labelled {twice[0]!r}; nearest valid: each once, or "
            "labels of your own: {label: value}"
        )
    return variants(name, {label: {key: value} for label, value in pairs})


def variants(name: str, choices: Mapping[str, Any]) -> Axes:
    """An axis whose values set several keys each: label -> {key: value}; {} changes nothing.

    Raises:
      ConfigError: no choices, or a key that is no text.
    """
    return cases((name,), {(label,): values for label, values in choices.items()})


def cases(names: Sequence[str], rows: Mapping[tuple[Any, ...], Any]) -> Axes:
    """Several axes that only make sense together: (label of each axis) -> {key: value}.

    Raises:
      ConfigError: no rows, a row with too few or too many labels, or a key that is no text.
    """
    axes = "x".join(names)
    if not rows or not names:
        raise ConfigError(f"axis {axes!r}: is empty; give at least one value")
    points = []
    for row, values in rows.items():
        if len(row) != len(names):
            raise ConfigError(f"axis {axes!r}: {row!r} needs {len(names)} labels")
        if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
            raise ConfigError(f"axis {axes!r}: {row!r} needs {{key: value}}, got {values!r}")
        labels = {
            name: _label(label, name) for name, label in builtins.zip(names, row, strict=True)
        }
        points.append(Point(labels, {_key(key): value for key, value in values.items()}))
    return Axes(tuple(points))


def product(*parts: Axes) -> Axes:
    """Every combination; the last part varies fastest.

    Raises:
      ConfigError: two parts have an axis or set a key in common.
    """
    points = [Point({}, {})]
    for part in _some("product", parts):
        points = [_join(a, b, "product") for a in points for b in part]
    return Axes(tuple(points))


def zip(*parts: Axes) -> Axes:
    """The first points of all parts together, then the second ones, and so on.

    Raises:
      ConfigError: parts of different lengths, or with an axis or key in common.
    """
    first, *others = _some("zip", parts)
    points = list(first)
    for part in others:
        if len(part) != len(first):
            raise ConfigError(
                f"zip: {_shown(first)} has {len(first)} values and {_shown(part)} has {len(part)}; "
                f"nearest valid: {min(len(first), len(part))} of each"
            )
        points = [_join(a, b, "zip") for a, b in builtins.zip(points, part, strict=True)]
    return Axes(tuple(points))


def chain(*parts: Axes) -> Axes:
    """The points of the first part, then those of the second; their axes may differ."""
    return Axes(tuple(point for part in _some("chain", parts) for point in part))


def conditional(axes: Axes, when: Match, then: Axes) -> Axes:
    """`then` in product with those points that match; the others stay as they are.

    Raises:
      ConfigError: nothing matches, or `when` names an axis or label that is not there.
    """
    chosen = _matches(axes, when, "conditional")
    points: list[Point] = []
    for point, matches in builtins.zip(axes, chosen, strict=True):
        points += [_join(point, more, "conditional") for more in then] if matches else [point]
    return Axes(tuple(points))


def exclude(axes: Axes, *matches: Match) -> Axes:
    """Leaves out what matches any of `matches`.

    Args:
      matches: {axis: label, or a list of labels}, all of which must hold; or a function of the
        labels.

    Raises:
      ConfigError: one matches nothing, or nothing is left.
    """
    gone = [_matches(axes, match, "exclude") for match in matches]
    kept = [point for i, point in enumerate(axes) if not any(found[i] for found in gone)]
    if not kept:
        raise ConfigError(f"exclude: nothing is left of {len(axes)} points")
    return Axes(tuple(kept))


def subsample(axes: Axes, count: int, seed: int = 0) -> Axes:
    """`count` points drawn without replacement, in their old order.

    Each point is drawn by a hash of `seed` and its labels: a larger `count` keeps those of a
    smaller one, and a point added to the grid moves at most one other.

    Raises:
      ConfigError: no such number of points.
    """
    if not 1 <= count <= len(axes):
        near = min(max(count, 1), len(axes))
        raise ConfigError(
            f"subsample: count={count} of {len(axes)} points; nearest valid value: {near}"
        )

    def draw(index: int) -> str:
        text = json.dumps([seed, sorted(axes.points[index].labels.items())])
        return hashlib.sha256(text.encode()).hexdigest()

    kept = sorted(sorted(range(len(axes)), key=draw)[:count])
    return Axes(tuple(axes.points[i] for i in kept))


def describe(labels: Mapping[str, str]) -> str:
    """`router=top_p,p=0.4`."""
    return ",".join(f"{name}={label}" for name, label in labels.items())


def _some(what: str, parts: Sequence[Axes]) -> Sequence[Axes]:
    if not parts:
        raise ConfigError(f"{what}: is empty; give at least one axis")
    for part in parts:
        if not isinstance(part, Axes):
            raise ConfigError(f"{what}: {part!r} is no axis; nearest valid: axis(key, values)")
    return parts


def _join(a: Point, b: Point, what: str) -> Point:
    for kind, left, right in (("axis", a.labels, b.labels), ("key", a.values, b.values)):
        both = [key for key in left if key in right]
        if both:
            raise ConfigError(
                f"{what}: the {kind} {both[0]!r} is set on both sides, by "
                f"{describe(a.labels)} and by {describe(b.labels)}"
            )
    return Point(a.labels | b.labels, a.values | b.values)


def _matches(axes: Axes, match: Match, what: str) -> list[bool]:
    """Whether each point matches; strict, so that a misspelt condition is not silently false."""
    if callable(match):
        found = [bool(match(dict(point.labels))) for point in axes]
        if not any(found):
            raise ConfigError(f"{what}: the function matches none of {len(axes)} points")
        return found
    wanted: dict[str, set[str]] = {}
    for name, choice in match.items():
        if name not in axes.names:
            known = ", ".join(axes.names)
            hint = nearest(name, axes.names) or f"; known: {known}"
            raise ConfigError(f"{what}: unknown axis {name!r}{hint}")
        choices = choice if isinstance(choice, list | tuple | set) else [choice]
        wanted[name] = {one if isinstance(one, str) else _label(one, name) for one in choices}
        labels = axes.labels(name)
        for label in wanted[name]:
            if label not in labels:
                hint = nearest(label, labels) or f"; known: {', '.join(labels)}"
                raise ConfigError(f"{what}: axis {name!r} has no {label!r}{hint}")
    found = [all(p.labels.get(name) in own for name, own in wanted.items()) for p in axes]
    if not any(found):
        raise ConfigError(f"{what}: {dict(match)!r} matches none of {len(axes)} points")
    return found


def _key(key: str) -> str:
    """The key without the `config.` that the command line has."""
    return key.removeprefix("config.")


def _label(value: Any, axis: str) -> str:
    """What a value is called in names and tables."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, int | str):
        return str(value) or "empty"
    if isinstance(value, tuple | list):
        return "-".join(_label(item, axis) for item in value) or "empty"
    name = value.get("name") if isinstance(value, Mapping) else registered_name(type(value))
    if isinstance(name, str):
        return name
    raise ConfigError(
        f"axis {axis!r}: a value of type {type(value).__name__} has no label; nearest valid: "
        "{label: value}"
    )


def plain_value(value: Any) -> Any:
    """A value as JSON holds it: dataclasses as dicts, tuples as lists."""
    if isinstance(value, Mapping):
        return {key: plain_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_value(item) for item in value]
    return dump(value)


def _shown(axes: Axes) -> str:
    return " x ".join(axes.names) or "nothing"
