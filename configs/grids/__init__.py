"""Shipped grids: `get_grid()` each, run by `python -m experiments.grid --grid=NAME`."""
