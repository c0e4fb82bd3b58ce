"""How hidden units are divided among experts, at equal parameters: HMoE's strategies.

Strategies differ in what a token activates, because tokens choose; the P-penalty (its coefficient
is an axis where widths differ) is what keeps them from choosing the wide ones.

    python -m experiments.grid run --grid=expert_widths --root=runs/expert_widths
"""

from __future__ import annotations

from moejax.grid import Sweep, axis, conditional, product


def get_grid() -> Sweep:
    """2 routers x (uniform + 3 strategies x 2 penalties) x 3 seeds."""
    treatments = product(
        axis("{moe}", ["hetero_top_k", "hetero_top_p"]),
        axis("model.moe.widths.strategy", ["uniform", "arithmetic", "geometric", "hybrid"]),
    )
    return Sweep(
        base="configs/lm.py:size=nano,moe={moe}",
        treatments=conditional(
            treatments,
            {"strategy": ["arithmetic", "geometric", "hybrid"]},
            axis("model.moe.losses.parameter_penalty.coefficient", [0.0, 0.1], name="penalty"),
        ),
        seeds=(0, 1, 2),
    )
