"""The sizes of configs/lm.py: their table in docs/models.md.

    PYTHONPATH=.:tests/models python -m ladder

prints it anew.
"""

from __future__ import annotations

import functools

from configs import lm
from moejax.config import build, counts
from moejax.train import Experiment


@functools.cache
def load(size: str, **options: str) -> Experiment:
    """Built and checked as the trainer does it, with the default MoE layer."""
    given = "".join(f",{name}={value}" for name, value in options.items())
    return build(Experiment, lm.get_config(f"size={size}{given}"))


def parameters(size: str) -> counts.Parameters:
    return counts.parameters(load(size).model.shape())


def short(number: float) -> str:
    unit, divisor = ("B", 1e9) if number >= 1e9 else ("M", 1e6)
    return f"{number / divisor:,.2f}{unit}"


def table() -> str:
    rows = [
        "| size | layers x width | experts | total | active | active, no embedding | tokens |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for size in lm.SIZES:
        made, count = load(size), parameters(size)
        moe = made.model.moe
        assert moe is not None
        shared = f" + {moe.shared_width}" if moe.shared_width else ""
        rows.append(
            f"| `{size}` | {made.model.num_layers} x {made.model.d_model} "
            f"| {moe.router.slots(moe.experts)} of {moe.experts} x {moe.widths.mean}{shared} "
            f"| {short(count.total)} | {short(count.active)} | {short(count.active_non_embedding)} "
            f"| {short(made.total_steps * made.tokens_per_step)} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
