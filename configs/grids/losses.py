"""Coefficients of the auxiliary losses: how much balance, z-loss and entropy loss is right?

python -m experiments.grid run --grid=losses --root=runs/losses
"""

from __future__ import annotations

from moejax.grid import Sweep, axis, conditional, product


def get_grid() -> Sweep:
    """Top-k: 4 balance x 2 z coefficients; top-p: 4 balance x 3 entropy coefficients; 3 seeds."""
    treatments = product(
        axis("{moe}", ["top_k", "top_p"]),
        axis("model.moe.losses.load_balance.coefficient", [0.0, 1e-3, 1e-2, 1e-1], name="balance"),
    )
    treatments = conditional(
        treatments,
        {"moe": "top_k"},
        axis("model.moe.losses.z_loss.coefficient", [0.0, 1e-3], name="z"),
    )
    treatments = conditional(
        treatments,
        {"moe": "top_p"},
        axis("model.moe.losses.entropy.coefficient", [0.0, 1e-4, 1e-2], name="entropy"),
    )
    return Sweep(base="configs/lm.py:size=nano,moe={moe}", treatments=treatments, seeds=(0, 1, 2))
