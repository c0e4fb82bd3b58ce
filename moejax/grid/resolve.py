"""Resolve: a sweep's points become cells with complete, checked configs and command lines."""

from __future__ import annotations

import ast
import dataclasses
import string
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict
from ml_collections.config_flags import config_flags

from moejax.config import ConfigError, build, nearest, override, to_plain
from moejax.config.flags import explain_file
from moejax.config.override import plain_variant
from moejax.grid.axes import Point, describe, plain_value
from moejax.grid.cells import Cell, Grid, cell_name
from moejax.grid.sweep import SEED, Sweep
from moejax.train.experiment import Experiment
from moejax.train.rundir import identity_hash


@dataclasses.dataclass(frozen=True)
class _Base:
    """A config file with its argument filled in: as flags see it, built, and plain."""

    flag: str
    config: config_dict.ConfigDict
    experiment: Experiment
    plain: dict[str, Any]


def resolve(sweep: Sweep, name: str, source: str, imports: tuple[str, ...] = ()) -> Grid:
    """The cells of a sweep.

    Raises:
      ConfigError: an unknown or unused key, a wrong value, keys set twice, holes of the argument
        and axes that do not match, two cells with one name or one config. Names the cell.
    """
    points = sweep.treatments.points if sweep.treatments else (Point({}, {}),)
    _check_holes(sweep, points)
    bases: dict[str, _Base] = {}
    cells: list[Cell] = []
    by_name: dict[str, Cell] = {}
    by_hash: dict[str, Cell] = {}
    flags = tuple(f"--import={one}" for one in dict.fromkeys([*sweep.imports, *imports]))
    for seed in sweep.seeds or (None,):
        for point in points:
            cell = _cell(sweep, point, seed, bases, flags)
            _refuse_twin(by_name.get(cell.name), cell, "are both called so")
            _refuse_twin(by_hash.get(cell.hash), cell, "have the same config")
            by_name[cell.name] = by_hash[cell.hash] = cell
            cells.append(cell)
    return Grid(name, source, tuple(cells), {base.flag: base.plain for base in bases.values()})


def _cell(
    sweep: Sweep,
    point: Point,
    seed: int | None,
    bases: dict[str, _Base],
    flags: tuple[str, ...],
) -> Cell:
    axes = dict(point.labels)
    holes = {key[1:-1]: value for key, value in point.values.items() if _is_hole(key)}
    values = {key: value for key, value in point.values.items() if not _is_hole(key)}
    where = describe(axes) or "the base"
    both = [key for key in values if key in sweep.overrides]
    if both:
        raise ConfigError(
            f"{where}: the key {both[0]!r} is also set for every cell; nearest valid: one of them"
        )
    changes = {**sweep.overrides, **values}
    if seed is not None:
        if SEED in changes:
            raise ConfigError(f"{where}: sets {SEED!r} among the treatments; nearest valid: seeds=")
        changes[SEED] = seed
    elif SEED in values and isinstance(values[SEED], int):
        seed = values[SEED]
        axes = {axis: label for axis, label in axes.items() if axis != SEED}
    _refuse_clash(changes, where)
    try:
        flag = _fill(sweep.base, holes)
        base = bases.get(flag) or bases.setdefault(flag, _load(flag))
        experiment = override(base.experiment, changes)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    plain = plain_variant(experiment, base.experiment, base.plain)
    try:
        words = _flags(changes, plain, base.config)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return Cell(
        name=cell_name(axes, seed),
        overrides={key: plain_value(value) for key, value in changes.items()},
        axes=axes,
        seed=seed,
        config=plain,
        hash=identity_hash(plain)[:10],
        argv=(*flags, f"--config={flag}", *words),
    )


def _refuse_clash(changes: Mapping[str, Any], where: str) -> None:
    """Refuses a key that is set inside of a section whose new value says it, too."""
    for key in changes:
        parts = key.split(".")
        for i in range(1, len(parts)):
            node: Any = changes.get(".".join(parts[:i]))
            for part in parts[i:]:
                node = node.get(part, _NOTHING) if isinstance(node, Mapping) else _NOTHING
            if node is not _NOTHING:
                section = ".".join(parts[:i])
                raise ConfigError(
                    f"{where}: the key {key!r} is also set inside of {section!r}; nearest valid: "
                    "one of them"
                )


_NOTHING = object()


# --- the config file -----------------------------------------------------------------------------


def _is_hole(key: str) -> bool:
    return key.startswith("{") and key.endswith("}")


def _holes(base: str) -> set[str]:
    """Names of the holes of a base; its other text is taken as it is."""
    try:
        return {name for _, name, _, _ in string.Formatter().parse(base) if name is not None}
    except ValueError as error:
        raise ConfigError(f"grid: base={base!r}: {error}") from error


def _check_holes(sweep: Sweep, points: tuple[Point, ...]) -> None:
    wanted = _holes(sweep.base)
    for point in points:
        given = {key[1:-1] for key in point.values if _is_hole(key)}
        unused, missing = sorted(given - wanted), sorted(wanted - given)
        where = describe(point.labels) or "the base"
        if unused:
            hint = nearest(unused[0], wanted) or f"; nearest valid: a base with {{{unused[0]}}}"
            raise ConfigError(
                f"{where}: {{{unused[0]}}} is unused, base={sweep.base!r} has no such hole{hint}"
            )
        if missing:
            hint = nearest(missing[0], given)
            raise ConfigError(f"{where}: nothing fills {{{missing[0]}}} of {sweep.base!r}{hint}")
    if any(_is_hole(key) for key in sweep.overrides):
        raise ConfigError("grid: overrides cannot fill holes; write the value into base")


def _fill(base: str, holes: Mapping[str, Any]) -> str:
    words = {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in holes.items()
    }
    return base.format(**words)


def _load(flag: str) -> _Base:
    problem = explain_file("config", ["", f"--config={flag}"])
    if problem:
        raise ConfigError(problem)
    # The parser of the training program, so that both read a config file in the same way.
    config = config_flags.ConfigFileFlagParser("config").parse(flag)
    experiment = build(Experiment, config)
    return _Base(flag, config, experiment, to_plain(experiment))


# --- the command line ----------------------------------------------------------------------------


def _flags(
    changes: Mapping[str, Any], plain: Mapping[str, Any], config: config_dict.ConfigDict
) -> list[str]:
    """`--config.KEY=VALUE` of every change; what lies inside another changed key is part of it."""
    keys = [
        key
        for key in changes
        if not any(key.startswith(f"{other}.") for other in changes if other != key)
    ]
    return [f"--config.{key}={_word(_at(plain, key), key, config)}" for key in keys]


def _at(plain: Mapping[str, Any], key: str) -> Any:
    node: Any = plain
    for part in key.split("."):
        node = node[part]
    return node


def _word(value: Any, key: str, config: config_dict.ConfigDict) -> str:
    """A value as the flags of ml_collections read it back."""
    parent, _, last = key.rpartition(".")
    node: Any = config
    for part in parent.split(".") if parent else ():
        node = node[part]
    if value is None and isinstance(node[last], config_dict.ConfigDict):
        raise ConfigError(
            f"config.{key}=None: the command line cannot take a whole section away; nearest valid: "
            "a config, or an argument of it, without the section (moe=dense)"
        )
    if isinstance(value, str) and (node.get_type(last) is str or not _is_literal(value)):
        return value
    return repr(_literal(value))


def _is_literal(text: str) -> bool:
    """Whether a field that takes several types would not read `text` as text."""
    try:
        ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return False
    return True


def _literal(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _literal(item) for key, item in value.items()}
    return tuple(map(_literal, value)) if isinstance(value, list | tuple) else value


def _refuse_twin(twin: Cell | None, cell: Cell, what: str) -> None:
    if twin is not None:
        names = twin.name if twin.name == cell.name else f"{twin.name} and {cell.name}"
        raise ConfigError(f"duplicate cells: {names} {what}; nearest valid: exclude one of them")
