"""Four sizes for scaling fits: `--config=configs/ladder.py:size=110k,moe=top_p`.

sizes  50k, 110k, 260k, 510k active non-embedding parameters: a decade in steps of about two; the
       exact numbers are those of `moejax.config.counts`
moe    as in configs/lm.py

Width and depth grow together, heads are two, everything else is `nano`'s. A run reads 20 tokens per
active non-embedding parameter of the dense model (Hoffmann et al. 2022), and the other kinds of a
size read as many. The learning rate falls with the size, UNVERIFIED: a guess around `nano`'s.
Layers are unrolled: at these sizes a training step is faster so on a core of its own.
"""

from __future__ import annotations

import dataclasses

from ml_collections import config_dict

from configs import lm
from moejax.config import parse_argument, to_config_dict
from moejax.config.counts import parameters

TOKENS_PER_PARAMETER = 20


def _rung(d_model: int, layers: int, lr: float) -> lm.Size:
    return dataclasses.replace(
        lm.SIZES["nano"], d_model=d_model, layers=layers, ffn_width=4 * d_model, lr=lr,
        eval_tokens=51_200,
    )  # fmt: skip


SIZES = {
    "50k": _rung(32, 3, 8e-3),
    "110k": _rung(48, 3, 7e-3),
    "260k": _rung(64, 4, 6e-3),
    "510k": _rung(80, 5, 5e-3),
}


def get_config(arg: str | None = None) -> config_dict.ConfigDict:
    """The experiment as a ConfigDict; every key can be overridden with `--config.a.b=value`."""
    choice = parse_argument(arg, size=tuple(SIZES), moe=lm.KINDS)
    dense = lm.experiment(SIZES[choice.size], "dense")
    tokens = round(TOKENS_PER_PARAMETER * parameters(dense.model.shape()).active_non_embedding)
    made = lm.experiment(SIZES[choice.size], choice.moe)
    return to_config_dict(
        dataclasses.replace(
            made,
            name=f"ladder-{choice.size}-{choice.moe}",
            model=dataclasses.replace(made.model, scan=False),
            train=dataclasses.replace(made.train, steps=f"{tokens} tokens"),
        )
    )
