"""Every kind of configs/lm.py at size tiny, three seeds: which router is worth its trouble?

Half a million tokens each, a fortieth of a full `tiny` run, in batches of 8 rows and so 245 steps,
so that the grid is done in a few hours on two cores.

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
        overrides={"train.steps": "0.5e6 tokens", "train.batch_size": 8},
    )
