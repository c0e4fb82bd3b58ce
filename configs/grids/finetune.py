"""Fine-tuning methods x tasks x seeds: a comparison from every base that is given.

Seven methods on three tasks, two seeds; LoRA, MultiLoRA and the top layers train as many parameters
as ESFT-Gate's selection, or as near as their sizes allow. `full` (everything) and `esft_random` (as
many experts, drawn at random) are what the others are held against. `finetune:p` has thresholds of
the selection instead, `finetune:rates` three learning rates of five methods, and `finetune:smoke`
is for seconds.

    python -m experiments.finetune_study --grid=finetune --base=runs/bases/RUN --out=runs/finetune
"""

from __future__ import annotations

from moejax.config import ConfigError, nearest
from moejax.finetune.recipe import LOW_RANK
from moejax.grid.finetuning import Comparison, Treatment

TASKS = ("law", "code", "mathematics")
METHODS = (
    "full", "partial", "lora", "multilora", "esft_random", "esft_token", "esft_gate",
)  # fmt: skip
SAME_MATRICES = {"targets": ("attention",), "per_expert": False}
"""Of both low-rank methods: with updates of experts MultiLoRA of rank 1 trains more than ESFT."""
THRESHOLDS = {
    "esft_gate": (0.05, 0.1, 0.2, 0.3, 0.6),
    "esft_token": (0.1, 0.2, 0.4, 0.6),
}
RATES = {
    "full": (1e-3, 3e-3, 1e-2),
    "partial": (3e-3, 1e-2, 3e-2),
    "lora": (2e-3, 6e-3, 2e-2),
    "multilora": (6e-3, 2e-2, 6e-2),
    "esft_gate": (3e-3, 1e-2, 3e-2),
}
"""About a factor of three apart; on the base of m=2 and `law` the one in the middle is best."""
NAMES = ("methods", "p", "rates", "smoke")


def get_comparison(arg: str | None = None) -> Comparison:
    """7 methods x 3 tasks x 2 seeds; `p`: 9 selections; `rates`: 5 methods at 3 rates, 1 seed;
    `smoke`: 3 methods, 2 tasks, 1 seed."""
    name = arg or NAMES[0]
    if name not in NAMES:
        raise ConfigError(f"finetune:{name}: known: {', '.join(NAMES)}{nearest(name, NAMES)}")
    methods = tuple(
        Treatment(method, overrides=SAME_MATRICES if method in LOW_RANK else {})
        for method in METHODS
    )
    if name == "p":
        curve = [Treatment(method, p) for method, many in THRESHOLDS.items() for p in many]
        return Comparison(TASKS, (Treatment("full"), *curve))
    if name == "rates":
        tried = [_at_rate(own, rate) for own in methods for rate in RATES.get(own.method, ())]
        return Comparison(TASKS, tried, seeds=(0,))
    if name == "smoke":
        small = tuple(one for one in methods if one.method in ("full", "lora", "esft_gate"))
        return Comparison(TASKS[:2], small, seeds=(0,), samples=4, length=128)
    return Comparison(TASKS, methods)


def _at_rate(own: Treatment, rate: float) -> Treatment:
    overrides = {**own.overrides, "optimizer.lr": rate}
    return Treatment(own.method, overrides=overrides, name=f"{own.method}-{rate:g}")
