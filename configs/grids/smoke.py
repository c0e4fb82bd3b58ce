"""Four small cells, about two minutes on two cores: does everything work?

python -m experiments.grid run --grid=smoke --root=runs/smoke
"""

from __future__ import annotations

from moejax.grid import Sweep, axis


def get_grid() -> Sweep:
    """Top-k and top-p at the size of a quick run, two seeds."""
    return Sweep(
        base="configs/lm.py:size=nano,moe={moe},quick",
        treatments=axis("{moe}", ["top_k", "top_p"]),
        seeds=(0, 1),
    )
