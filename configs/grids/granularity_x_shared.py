"""DeepSeekMoE's two ideas apart and together: finer experts, and shared ones.

Every layer is the same top-k layer cut differently: total and active parameters stay as they are
(the router's aside). `granularity` is the number of pieces of an expert, `shared` how many pieces
every token uses.

    python -m experiments.grid run --grid=granularity_x_shared --root=runs/granularity
"""

from __future__ import annotations

from configs import lm
from moejax.experts import fine_grained
from moejax.grid import Sweep, cases


def get_grid() -> Sweep:
    """3 granularities x up to 3 numbers of shared pieces x 3 seeds."""
    layer = lm.experiment(lm.SIZES["nano"], "top_k").model.moe
    assert layer is not None
    cut = {
        (m, shared): fine_grained(layer, m, shared)
        for m in (1, 2, 4)
        for shared in (0, 1, 2)
        if shared < 2 * m  # some of the two active experts' pieces are left to choose
    }
    return Sweep(
        base="configs/lm.py:size=nano,moe=top_k",
        treatments=cases(
            ("granularity", "shared"),
            {
                labels: {
                    "model.moe.experts": own.experts,
                    "model.moe.widths.mean": own.widths.mean,
                    "model.moe.router.k": own.router.k,
                    "model.moe.shared_width": own.shared_width,
                }
                for labels, own in cut.items()
            },
        ),
        seeds=(0, 1, 2),
    )
