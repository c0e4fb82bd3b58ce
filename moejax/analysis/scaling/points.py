"""Measured losses as a table: what a law is fitted to, whatever files it came from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moejax.analysis.scaling.descent import Floats, Ints

COLUMNS = {
    "n": "parameters",
    "d": "training tokens",
    "c": "training FLOPs",
    "e": "experts per layer, 1 where dense",
    "g": "granularity: expert widths that make up one dense FFN",
    "a": "activation ratio: active over all experts",
    "loss": "final loss, nats per token",
    "leverage": "dense FLOPs over MoE FLOPs at equal loss",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
    """One row per finished run. Numbers are float64 `[I]`, NaN where the data does not have them.

    `cell_I` names a treatment: runs with the same name differ in nothing but their seed, and stay
    together when uncertainty is estimated. Units: `COLUMNS`.
    """

    run_I: tuple[str, ...]
    group_I: tuple[str, ...]
    cell_I: tuple[str, ...]
    seed_I: tuple[str, ...]
    n_I: Floats
    d_I: Floats
    c_I: Floats
    e_I: Floats
    g_I: Floats
    a_I: Floats
    loss_I: Floats
    leverage_I: Floats

    def __len__(self) -> int:
        return len(self.run_I)

    def column(self, name: str) -> Floats:
        """The column of that name of `COLUMNS`."""
        return np.asarray(getattr(self, f"{name}_I"), np.float64)

    def has(self, name: str) -> bool:
        """Whether every row has that number."""
        return bool(np.isfinite(self.column(name)).all()) and len(self) > 0

    def take(self, rows: NDArray) -> Points:
        """The rows of a mask or of indices."""
        index = np.arange(len(self))[rows]
        picked: dict[str, object] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            picked[field.name] = (
                tuple(value[i] for i in index) if isinstance(value, tuple) else value[index]
            )
        return Points(**picked)  # type: ignore[arg-type]

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups in order of appearance."""
        return tuple(dict.fromkeys(self.group_I))

    @property
    def cells(self) -> tuple[tuple[str, str], ...]:
        """(group, cell) in order of appearance."""
        return tuple(dict.fromkeys(zip(self.group_I, self.cell_I, strict=True)))

    def cell_index(self) -> Ints:
        """For each row the place of its cell in `cells` `[I]`."""
        place = {cell: i for i, cell in enumerate(self.cells)}
        pairs = zip(self.group_I, self.cell_I, strict=True)
        return np.array([place[pair] for pair in pairs], np.int64)

    def ordered(self) -> Points:
        """The rows by group, numbers and seed: equal data in one order, whatever it was."""
        numbers = [self.column(name) for name in reversed(COLUMNS)]
        return self.take(np.lexsort([np.array(self.seed_I), *numbers, np.array(self.group_I)]))

    def in_group(self, group: str) -> Points:
        """The rows of one group."""
        return self.take(np.array([g == group for g in self.group_I], bool))

    def digest(self) -> str:
        """SHA-256 of the numbers, groups, cells and seeds; neither row order nor names count."""
        cell = dict.fromkeys(self.cells, "")
        rows = []
        for i, pair in enumerate(zip(self.group_I, self.cell_I, strict=True)):
            numbers = [float(self.column(name)[i]).hex() for name in COLUMNS]
            rows.append([pair[0], self.seed_I[i], *numbers])
            cell[pair] = min(cell[pair] or "~", json.dumps(rows[-1]))
        # A cell is named by its first row: equal data hash alike, whatever cells are called.
        pairs = zip(self.group_I, self.cell_I, strict=True)
        lines = sorted(
            json.dumps([*row, cell[pair]]) for row, pair in zip(rows, pairs, strict=True)
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """A training run seen from its evaluations `[S]`, in order: FLOPs, tokens, loss."""

    run: str
    group: str
    cell: str
    n: float
    c_S: Floats
    d_S: Floats
    loss_S: Floats


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Points, training curves where there are any, and how both came about.

    `n_is` and `c_is` say in words what N and C are; `notes` what was assumed; `excluded` which runs
    or lines were left out and why.
    """

    points: Points
    curves: tuple[Curve, ...] = ()
    n_is: str = "parameters"
    c_is: str = "training FLOPs"
    notes: tuple[str, ...] = ()
    excluded: tuple[tuple[str, str], ...] = ()


def make_points(
    *,
    run: Sequence[str] | None = None,
    group: Sequence[str] | None = None,
    cell: Sequence[str] | None = None,
    seed: Sequence[str] | None = None,
    **columns: ArrayLike,
) -> Points:
    """Points from columns of `COLUMNS`, broadcast to one length.

    Without `cell`, rows of a group with the same numbers (but the response) are one cell. Without
    `seed`, rows of a cell count up.

    Raises:
      TypeError: a column that `COLUMNS` does not have.
    """
    unknown = sorted(set(columns) - set(COLUMNS))
    if unknown:
        raise TypeError(f"no column {unknown[0]!r}; there are {', '.join(COLUMNS)}")
    arrays = np.broadcast_arrays(*(np.asarray(v, np.float64).ravel() for v in columns.values()))
    given = dict(zip(columns, arrays, strict=True))
    length = len(arrays[0]) if arrays else 0
    numbers = {name: np.array(given.get(name, np.full(length, np.nan))) for name in COLUMNS}
    groups = tuple(group) if group is not None else ("",) * length
    if cell is None:
        inputs = [numbers[name] for name in COLUMNS if name not in ("loss", "leverage")]
        cell = ["/".join(f"{float(v[i]):.12g}" for v in inputs) for i in range(length)]
    if seed is None:
        seen: dict[tuple[str, str], int] = {}
        seed = []
        for pair in zip(groups, cell, strict=True):
            seen[pair] = seen.get(pair, -1) + 1
            seed.append(str(seen[pair]))
    return Points(
        run_I=tuple(run) if run is not None else tuple(f"row {i + 1}" for i in range(length)),
        group_I=groups,
        cell_I=tuple(cell),
        seed_I=tuple(seed),
        **{f"{name}_I": value for name, value in numbers.items()},
    )
