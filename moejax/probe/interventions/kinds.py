"""The five interventions: what each sweeps, which values and routers it takes, what it sets."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any, ClassVar

from moejax.config import ConfigError, nearest
from moejax.experts import MoeConfig
from moejax.probe.interventions.edit import AFTER
from moejax.probe.interventions.rules import RULES
from moejax.routing.contract import Router
from moejax.routing.routers import (
    MoEfication,
    MoEPlusPlus,
    Oracle,
    SigmoidBias,
    TopK,
    TopP,
)

Value = int | float | Fraction
WITH_K = (TopK, SigmoidBias, MoEPlusPlus, MoEfication, Oracle)
"""Routers (and their kind) whose tokens all use `k` experts, by score."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """One intervention. A value is checked against each layer that it is to act on."""

    name: ClassVar[str]
    removes: ClassVar[bool] = False
    """Whether it takes experts away, so that `when` and `renormalise` mean something."""
    per_expert: ClassVar[bool] = False
    """Whether its values are experts of one layer, which each layer has its own of."""

    def refuses(self, moe: MoeConfig, when: str) -> str:
        """Why it means nothing for a layer, with the nearest that does; "": it does not."""
        raise TypeError(f"{type(self).__name__} takes no layer")

    def bounds(self, moe: MoeConfig) -> tuple[Value, Value]:
        """Least and greatest value for a layer."""
        raise TypeError(f"{type(self).__name__} has no values")

    def defaults(self, moes: list[MoeConfig]) -> tuple[Value, ...]:
        """The values of a sweep that names none."""
        raise TypeError(f"{type(self).__name__} has no default values")

    def settings(self, value: Value, moe: MoeConfig) -> dict[str, Any]:
        """What it sets of an `Edit`, as Python numbers."""
        raise TypeError(f"{type(self).__name__} sets nothing")

    def parse(self, word: str) -> Value:
        """One of `--values`; raises ValueError for what is no value."""
        return int(word)


class DisableTop(Kind):
    """The `r` most probable experts of each token are taken away (DeepSeekMoE, figure 4)."""

    name = "disable_top"
    removes = True

    def refuses(self, moe: MoeConfig, when: str) -> str:
        if not moe.router.has_scores:
            return "gives experts no probabilities; nearest valid --what=drop_one --when=after"
        return _needs_rule(moe.router, when)

    def bounds(self, moe: MoeConfig) -> tuple[Value, Value]:
        return 0, moe.num_experts

    def defaults(self, moes: list[MoeConfig]) -> tuple[Value, ...]:
        return tuple(range(min(4, *(moe.num_experts for moe in moes)) + 1))

    def settings(self, value: Value, moe: MoeConfig) -> dict[str, Any]:
        count = value
        if isinstance(value, Fraction):
            count = math.floor(value * moe.num_experts + Fraction(1, 2))
        return {"top": count}

    def parse(self, word: str) -> Value:
        """A count, or a share of the experts like `1/16`."""
        return Fraction(word) if "/" in word else int(word)


class SharedForRouted(Kind):
    """The shared expert is taken away, and so many routed ones are used beside those that the rule
    asks for (DeepSeekMoE, section 4.5)."""

    name = "shared_for_routed"

    def refuses(self, moe: MoeConfig, when: str) -> str:
        if not moe.shared_width:
            return "has no shared expert beside it; nearest valid --what=k"
        if not isinstance(moe.router, (*WITH_K, TopP)) or type(moe.router) not in RULES:
            return "has no next best expert to add; nearest valid a router like top_k or top_p"
        return ""

    def bounds(self, moe: MoeConfig) -> tuple[Value, Value]:
        if isinstance(moe.router, WITH_K):
            return 0, _reach(moe) - getattr(moe.router, "k")  # noqa: B009 - all of WITH_K have it
        return 0, moe.num_experts

    def defaults(self, moes: list[MoeConfig]) -> tuple[Value, ...]:
        return tuple(range(min(1, *(int(self.bounds(moe)[1]) for moe in moes)) + 1))

    def settings(self, value: Value, moe: MoeConfig) -> dict[str, Any]:
        return {"shared": False, "extra": value}


class ExpertsPerToken(Kind):
    """Another `k` at test time (DeepSeekMoE, figure 5)."""

    name = "k"

    def refuses(self, moe: MoeConfig, when: str) -> str:
        if isinstance(moe.router, WITH_K) and type(moe.router) in RULES:
            return ""
        instead = "--what=p" if isinstance(moe.router, TopP) else "a router like top_k"
        return f"does not choose the k best by score; nearest valid {instead}"

    def bounds(self, moe: MoeConfig) -> tuple[Value, Value]:
        return 1, _reach(moe)

    def defaults(self, moes: list[MoeConfig]) -> tuple[Value, ...]:
        largest = max(getattr(moe.router, "k") for moe in moes)  # noqa: B009
        return tuple(range(1, min(2 * largest, *(_reach(moe) for moe in moes)) + 1))

    def settings(self, value: Value, moe: MoeConfig) -> dict[str, Any]:
        return {"k": value}


class Threshold(Kind):
    """Another `p` at test time."""

    name = "p"

    def refuses(self, moe: MoeConfig, when: str) -> str:
        if isinstance(moe.router, TopP) and type(moe.router) in RULES:
            return ""
        instead = "--what=k" if isinstance(moe.router, WITH_K) else "a router like top_p"
        return f"has no threshold p; nearest valid {instead}"

    def bounds(self, moe: MoeConfig) -> tuple[Value, Value]:
        return math.nextafter(0.0, 1.0), 1.0

    def defaults(self, moes: list[MoeConfig]) -> tuple[Value, ...]:
        trained = {moe.router.p for moe in moes if isinstance(moe.router, TopP)}
        return tuple(sorted({n / 10 for n in range(1, 11)} | trained))

    def settings(self, value: Value, moe: MoeConfig) -> dict[str, Any]:
        return {"p": value}

    def parse(self, word: str) -> Value:
        value = float(word)
        if not math.isfinite(value):
            raise ValueError(word)
        return value


class DropOne(Kind):
    """One expert of one layer is taken away from all tokens, each in turn."""

    name = "drop_one"
    removes = True
    per_expert = True

    def refuses(self, moe: MoeConfig, when: str) -> str:
        return _needs_rule(moe.router, when)

    def bounds(self, moe: MoeConfig) -> tuple[Value, Value]:
        return 0, moe.num_experts - 1

    def defaults(self, moes: list[MoeConfig]) -> tuple[Value, ...]:
        return tuple(range(max(moe.num_experts for moe in moes)))

    def settings(self, value: Value, moe: MoeConfig) -> dict[str, Any]:
        return {"drop": (int(value),)}


KINDS: dict[str, Kind] = {
    kind.name: kind() for kind in (DisableTop, SharedForRouted, ExpertsPerToken, Threshold, DropOne)
}
"""By `--what`."""


def kind_of(name: str) -> Kind:
    """The intervention of a name; raises ConfigError, naming the nearest."""
    if name not in KINDS:
        known = ", ".join(KINDS)
        raise ConfigError(
            f"--what={name!r}: unknown intervention{nearest(name, KINDS)}; known: {known}"
        )
    return KINDS[name]


def parse_values(name: str, words: str) -> tuple[Value, ...]:
    """`--values`: comma-separated; empty: none.

    Raises:
      ConfigError: one of them is no value of this intervention.
    """
    kind = kind_of(name)
    found: list[Value] = []
    for word in filter(None, (word.strip() for word in words.split(","))):
        try:
            if len(word) > 20:
                raise ValueError(word)
            found.append(kind.parse(word))
        except (ValueError, ZeroDivisionError):
            example = ",".join(map(str, kind_example(kind)))
            raise ConfigError(
                f"--values: {word[:20]!r} is no value of {name}; nearest valid e.g. "
                f"--values={example}"
            ) from None
    return tuple(dict.fromkeys(found))


def kind_example(kind: Kind) -> tuple[Value, ...]:
    """Values that any layer can have."""
    return (0.2, 0.4) if isinstance(kind, Threshold) else (0, 1) if kind.name != "k" else (1, 2)


def _needs_rule(router: Router, when: str) -> str:
    """Whether the router can choose among the experts that are left."""
    if when == AFTER or type(router) in RULES:
        return ""
    return f"cannot choose again among the experts that are left; nearest valid --when={AFTER}"


def _reach(moe: MoeConfig) -> int:
    """The most experts that one token can choose: those of the groups that it is limited to."""
    groups = getattr(moe.router, "groups", 1)
    kept = getattr(moe.router, "groups_kept", 1)
    return moe.num_experts * min(kept, groups) // groups
