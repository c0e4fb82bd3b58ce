"""Every kind of configs/lm.py at size tiny, three seeds: which router is worth its trouble?

A quarter of a million tokens each, an eightieth of a full `tiny` run, in batches of 4 rows and so
245 steps: two cores do the grid in an afternoon.

    python -m experiments.grid run --grid=routers --root=runs/routers
"""

from __future__ import annotations

from configs import lm
from moejax.grid import Sweep, axis


def get_grid() -> Sweep:
    """14 kinds x 3 seeds."""
    return Sweep(
        base="configs/lm.py:size=tiny,moe={moe}",
        treatments=axis("{moe}", lm.KINDS),
        seeds=(0, 1, 2),
        overrides={"train.steps": "0.25e6 tokens", "train.batch_size": 4},
    )
