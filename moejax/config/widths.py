"""Width plans: how a layer's hidden units are divided among its experts.

Widths are whole multiples of a *unit* (the granularity of storage and sharding). A plan keeps the
layer's total: `experts * mean_width` hidden units whatever the strategy, so that strategies are
compared at equal parameters. Sources: HMoE (2408.10681) section 4 and appendix; methods.md B.2.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from moejax.config.knobs import ConfigError, knob, nearest


def _uniform(experts: int) -> list[float]:
    return [1.0] * experts


def _arithmetic(experts: int) -> list[float]:
    """{9, 11, ..., 23} for 8 experts (HMoE); the same end points for any other number."""
    if experts == 1:
        return [1.0]
    return [9.0 + 14.0 * e / (experts - 1) for e in range(experts)]


def _geometric(experts: int) -> list[float]:
    """{1, 2, ..., 128} for 8 experts (HMoE); the same end points for any other number."""
    if experts == 1:
        return [1.0]
    return [128.0 ** (e / (experts - 1)) for e in range(experts)]


def _hybrid(experts: int) -> list[float]:
    """{1, 1, 1, 1, 2, 2, 4, 4} for 8 experts (HMoE): half 1, a quarter 2, the rest 4."""
    half, quarter = experts // 2, experts // 4
    return [1.0] * half + [2.0] * quarter + [4.0] * (experts - half - quarter)


STRATEGIES: dict[str, Callable[[int], list[float]]] = {
    "uniform": _uniform,
    "arithmetic": _arithmetic,
    "geometric": _geometric,
    "hybrid": _hybrid,
}
"""Relative sizes of `n` experts. Add a strategy by adding a function here."""


@dataclasses.dataclass(frozen=True)
class WidthPlan:
    """Hidden width of each routed expert."""

    strategy: str = knob(
        "uniform",
        choices=(*STRATEGIES, "explicit"),
        doc="How the hidden units are divided: HMoE's strategies, or an explicit list.",
    )
    mean: int = knob(128, low=1, unit="hidden units", doc="Mean width of a routed expert.")
    unit: int = knob(
        0,
        low=0,
        unit="hidden units",
        doc="Every width is a multiple of this; 0: the mean width (explicit: the widths' greatest "
        "common divisor).",
    )
    explicit: tuple[int, ...] = knob(
        (), low=0, unit="hidden units", doc="Width of each expert, for strategy=explicit."
    )

    @property
    def unit_width(self) -> int:
        """`U`, hidden units per storage unit."""
        if self.unit == 0 and self.strategy == "explicit":
            return math.gcd(*self.explicit) or 1
        return self.unit or self.mean

    def widths(self, experts: int, path: str = "widths") -> tuple[int, ...]:
        """Width of each of `experts` experts, in hidden units.

        Raises:
          ConfigError: a width is not a multiple of the unit, or the list's length is not the
            number of experts. An explicit width may be 0 (an expert that returns 0).
        """
        unit = self.unit_width
        if self.strategy == "explicit":
            return _explicit(self.explicit, experts, unit, path)
        if self.explicit:
            raise ConfigError(
                f"{path}.explicit: a list of widths needs {path}.strategy='explicit', "
                f"got {self.strategy!r}"
            )
        if self.strategy not in STRATEGIES:
            raise ConfigError(
                f"{path}.strategy: unknown width strategy {self.strategy!r}"
                f"{nearest(self.strategy, STRATEGIES)}"
            )
        total = self.mean * experts
        equal = self.strategy == "uniform"
        if (self.mean if equal else total) % unit:
            who = "" if equal else f"{experts} experts x "
            raise ConfigError(
                f"{path}.mean: {who}{self.mean} hidden units is not a multiple of unit {unit}; "
                f"nearest valid value {max(unit, round(self.mean / unit) * unit)}"
            )
        if total // unit < experts:
            raise ConfigError(
                f"{path}.unit: {total} hidden units in units of {unit} cannot give {experts} "
                f"experts one unit each; {self._finer_unit(experts)}"
            )
        shares = apportion(STRATEGIES[self.strategy](experts), total // unit)
        if not equal and experts > 1 and len(set(shares)) == 1:
            raise ConfigError(
                f"{path}.unit: in units of {unit} every expert of strategy {self.strategy!r} gets "
                f"{shares[0] * unit} hidden units; {self._finer_unit(experts)}"
            )
        return tuple(share * unit for share in shares)

    def _finer_unit(self, experts: int) -> str:
        """The largest unit that tells the experts apart, as a hint."""
        total, relative = self.mean * experts, STRATEGIES[self.strategy](experts)
        for unit in range(min(self.unit_width - 1, self.mean), 0, -1):
            if total % unit == 0 and len(set(apportion(relative, total // unit))) > 1:
                return f"nearest valid value {unit}"
        return "a larger mean width is needed"


def apportion(relative: list[float], total: int) -> list[int]:
    """Divides `total` units in proportion to `relative`: at least one each, exact sum.

    Largest-remainder method (ties to the earlier entry); HMoE does not state its rounding.
    """
    scale = total / sum(relative)
    quotas = [r * scale for r in relative]
    shares = [max(1, int(q + 1e-9)) for q in quotas]
    while sum(shares) != total:
        step = 1 if sum(shares) < total else -1
        movable = [i for i, share in enumerate(shares) if share + step >= 1]
        best = max(movable, key=lambda i: (step * (quotas[i] - shares[i]), -i))
        shares[best] += step
    return shares


def _explicit(widths: tuple[int, ...], experts: int, unit: int, path: str) -> tuple[int, ...]:
    if len(widths) != experts:
        raise ConfigError(
            f"{path}.explicit: {len(widths)} widths for {experts} experts; give one per expert"
        )
    for index, width in enumerate(widths):
        if width < 0 or width % unit:
            raise ConfigError(
                f"{path}.explicit[{index}]: width {width} is not a multiple of unit {unit}; "
                f"nearest valid value {max(unit, round(width / unit) * unit)}"
            )
    return tuple(widths)
