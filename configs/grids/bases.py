"""Bases for fine-tuning: one MoE with its experts cut into 1, 2 and 4, equally large and active.

260k active non-embedding parameters of the ladder, and 20 million tokens each: 76 tokens per active
parameter, so that there is something to forget. Total and active parameters are the same (the
router's aside). What is fine-tuned from them: `configs/grids/finetune.py`.

    python -m experiments.grid run --grid=bases --root=runs/bases
"""

from __future__ import annotations

from configs import ladder, lm
from moejax.experts import fine_grained
from moejax.grid import Sweep, variants

SIZE = "260k"


def get_grid() -> Sweep:
    """3 granularities, one seed."""
    layer = lm.experiment(ladder.SIZES[SIZE], "top_k").model.moe
    assert layer is not None
    cut = {m: fine_grained(layer, m) for m in (1, 2, 4)}
    return Sweep(
        base=f"configs/ladder.py:size={SIZE},moe=top_k",
        treatments=variants(
            "m",
            {
                str(m): {
                    "model.moe.experts": own.experts,
                    "model.moe.widths.mean": own.widths.mean,
                    "model.moe.router.k": own.router.k,
                }
                for m, own in cut.items()
            },
        ),
        seeds=(0,),
        overrides={"train.steps": "20e6 tokens"},
    )
