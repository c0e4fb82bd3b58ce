"""Loss against size: four kinds at four sizes, 20 tokens per active parameter, two seeds.

python -m experiments.grid run --grid=scaling_ladder --root=runs/scaling_ladder
"""

from __future__ import annotations

from configs import ladder
from moejax.grid import Sweep, axis, product


def get_grid() -> Sweep:
    """4 sizes x 4 kinds x 2 seeds; small sizes come first."""
    return Sweep(
        base="configs/ladder.py:size={size},moe={moe}",
        treatments=product(
            axis("{size}", list(ladder.SIZES)),
            axis("{moe}", ["dense", "top_k", "top_p", "hetero_top_p"]),
        ),
        seeds=(0, 1),
    )
