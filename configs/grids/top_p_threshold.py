"""The threshold p of top-p routing, with experts of one width and of different widths.

What a threshold costs is not known beforehand: compare at measured FLOPs, e.g.
`best --by=eval/loss,measured/flops_per_token`.

    python -m experiments.grid run --grid=top_p_threshold --root=runs/top_p_threshold
"""

from __future__ import annotations

from moejax.grid import Sweep, axis, product


def get_grid() -> Sweep:
    """2 kinds x 6 thresholds x 3 seeds."""
    return Sweep(
        base="configs/lm.py:size=nano,moe={moe}",
        treatments=product(
            axis("{moe}", ["top_p", "hetero_top_p"]),
            axis("model.moe.router.p", [0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
        ),
        seeds=(0, 1, 2),
    )
