"""The targets, as data, and what is said of a measured ratio.

2 cores, float32, forward and backward, routing included; the median of at least 5 processes, and
the process-CPU ratio decides. Whoever changes a number here changes what the project promises.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

from tools.benchmarks.rows import IDENTITY, Row

NOISE = 0.10
"""Differences below this are not resolved on a shared machine of two cores."""

Direction = Literal[">=", "<="]

TOP_2 = "top-2 of 8"
TOP_6 = "top-6 of 64"
GROWTH = "E 8 to 64, k=2"
HETERO = "widths 128 to 1024"
TOP_P = "top-p, mean k=2"
SKEW = "skew, max/mean load 8"
LM_DENSE = "LM step, dense"
LM_MOE = "LM step, MoE"

DENSE = "speed / dense FFN of equal FLOPs"
GEMM = "FLOP/s / GEMM"
HF_GROUPED = "speed / HF grouped_mm"
HF_EAGER = "speed / HF eager"
GROWN = "time / E=8"
FIXED = "time / fixed k=2"
BALANCED = "time / balanced"
TORCH = "speed / torch eager"
MEMORY = "temporary memory / dense FFN"
DENSE_STEP = "speed / dense step of equal FLOPs"

ANY = "-"
"""The back end of a row that has no experts."""


@dataclasses.dataclass(frozen=True)
class Target:
    """One cell of the table.

    Attributes:
      suite, case, backend, metric: the row that it speaks of.
      direction: which side of the threshold is good.
      threshold: None: to be reported only.
      noise: share of the threshold that may be missing for "at target within noise".
    """

    suite: str
    case: str
    backend: str
    metric: str
    direction: Direction
    threshold: float | None
    noise: float = NOISE

    @property
    def key(self) -> tuple[str, ...]:
        return (self.suite, self.case, self.backend, self.metric)

    @property
    def text(self) -> str:
        """`>= 1.15`, or `report`."""
        return "report" if self.threshold is None else f"{self.direction} {self.threshold:g}"

    def met(self, ratio: float | None) -> bool | None:
        """Whether the ratio reaches the threshold; None where there is none."""
        if self.threshold is None:
            return None
        if ratio is None:
            return False
        return ratio >= self.threshold if self.direction == ">=" else ratio <= self.threshold

    def verdict(self, ratio: float | None) -> str:
        """`met`, `at target within noise`, `missed`, `not available` or `report`."""
        if ratio is None:
            return "not available"
        if self.threshold is None:
            return "report"
        if self.met(ratio):
            return "met"
        near = (
            ratio >= self.threshold * (1 - self.noise)
            if self.direction == ">="
            else ratio <= self.threshold * (1 + self.noise)
        )
        return "at target within noise" if near else "missed"


def _both(
    suite: str,
    case: str,
    metric: str,
    direction: Direction,
    native: float,
    tiles: float | None,
    noise: float = NOISE,
) -> tuple[Target, Target]:
    """The two columns of a line of the table."""
    return (
        Target(suite, case, "native", metric, direction, native, noise),
        Target(suite, case, "tiles", metric, direction, tiles, noise),
    )


TARGETS: tuple[Target, ...] = (
    *_both("moe_layer", TOP_2, DENSE, ">=", 1.15, 0.85),
    *_both("moe_layer", TOP_2, GEMM, ">=", 0.85, None),
    *_both("moe_layer", TOP_2, HF_GROUPED, ">=", 1.3, None),
    *_both("moe_layer", TOP_6, DENSE, ">=", 0.95, 0.42),
    *_both("moe_layer", TOP_6, HF_GROUPED, ">=", 2.3, None),
    *_both("moe_layer", TOP_6, HF_EAGER, ">=", 7.0, None),
    *_both("growth", GROWTH, GROWN, "<=", 1.25, 1.7),
    *_both("hetero", HETERO, DENSE, ">=", 1.0, 0.65),
    *_both("top_p", TOP_P, FIXED, "<=", 1.1, 1.25),
    *_both("skew", SKEW, BALANCED, "<=", 1.1, None),
    Target("lm_step", LM_DENSE, ANY, TORCH, ">=", 1.0),
    *_both("lm_step", LM_MOE, TORCH, ">=", 1.0, None),
    # A compiler's count is the same every time: no allowance for noise.
    *_both("moe_layer", TOP_6, MEMORY, "<=", 1.0, 2.0, noise=0.0),
    *_both("lm_step", LM_MOE, DENSE_STEP, ">=", 0.95, None),
)

SUITES_WITH_TARGETS: tuple[str, ...] = tuple(dict.fromkeys(target.suite for target in TARGETS))


def judged(rows: Iterable[Row], targets: Sequence[Target] = TARGETS) -> list[Row]:
    """Rows with `target`, `met` and `verdict`, those with a target first, in its order; a row
    without one has None, None, `report`."""
    order = {target.key: index for index, target in enumerate(targets)}
    result = []
    for row in sorted(rows, key=lambda row: order.get(_key(row), len(order))):
        ratio, index = row["ratio"], order.get(_key(row))
        if index is None:
            verdict = "not available" if ratio is None else "report"
            result.append(row | {"target": None, "met": None, "verdict": verdict})
        else:
            target = targets[index]
            judgement = {"met": target.met(ratio), "verdict": target.verdict(ratio)}
            result.append(row | {"target": target.text} | judgement)
    return result


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row[key] for key in IDENTITY)


def missing(
    rows: Iterable[Row], backends: Sequence[str], suites: Sequence[str], reason: str
) -> list[Row]:
    """Rows for the targets that nothing speaks of, so that none is passed over in silence."""
    there = {_key(row) for row in rows}
    return [
        dict(zip(IDENTITY, target.key, strict=True))
        | {
            "shape": "",
            "dropless": None,
            "basis": "cpu",
            "ratio": None,
            "wall_ratio": None,
            "min_ratio": None,
            "spread": 0.0,
            "note": reason,
            "processes": 0,
            "spread_over": "processes",
        }
        for target in TARGETS
        if target.key not in there and target.suite in suites and target.backend in (*backends, ANY)
    ]
