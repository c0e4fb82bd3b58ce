"""Grids of runs: defined as data, planned by arithmetic, run, resumed and compared by files."""

from moejax.grid.axes import (
    Axes,
    axis,
    cases,
    chain,
    conditional,
    exclude,
    product,
    subsample,
    variants,
    zip,
)
from moejax.grid.cells import Cell, Grid
from moejax.grid.sweep import Sweep

__all__ = [
    "Axes",
    "Cell",
    "Grid",
    "Sweep",
    "axis",
    "cases",
    "chain",
    "conditional",
    "exclude",
    "product",
    "subsample",
    "variants",
    "zip",
]
