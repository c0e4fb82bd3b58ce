"""The small configuration that the tests of moejax.config share."""

from __future__ import annotations

import dataclasses
from typing import Literal

from moejax.config import ConfigError, Registry, knob

ROUTERS = Registry("router")


@ROUTERS.register("top_k")
@dataclasses.dataclass(frozen=True)
class TopK:
    k: int = knob(2, low=1, unit="experts per token", doc="Experts per token.")


@ROUTERS.register("top_p")
@dataclasses.dataclass(frozen=True)
class TopP:
    p: float = knob(0.4, low=0, high=1, low_open=True)
    k_max: int | None = knob(None, low=1)
    rule: Literal["strict", "inclusive"] = "inclusive"


@dataclasses.dataclass(frozen=True)
class Moe:
    experts: int = knob(8, low=1, high=64)
    router: object = knob(TopP(), registry=ROUTERS)
    widths: tuple[int, ...] = knob((), low=1, unit="units")
    losses: dict[str, float] = knob({"balance": 0.01}, low=0)

    def validate(self, path: str) -> None:
        k = getattr(self.router, "k", 1)
        if k > self.experts:
            raise ConfigError(
                f"{path}.router.k={k}: exceeds experts={self.experts}; "
                f"nearest valid value: {self.experts}"
            )


@dataclasses.dataclass(frozen=True)
class Model:
    heads: int = knob(4, choices=(1, 2, 4, 8))
    dtype: str = knob("float32", choices=("float32", "bfloat16"))
    moe: Moe | None = knob(Moe())
    dense: Moe | None = knob(None)


@dataclasses.dataclass(frozen=True)
class Experiment:
    name: str = knob("run")
    model: Model = knob(Model())
    steps: int | str = knob(500)
    learning_rate: float = knob(1e-3, low=0, high=1, low_open=True, high_open=True)
    quick: bool = knob(False)
    label: str | None = knob(None)
    betas: tuple[float, float] = knob((0.9, 0.95), low=0, high=1, high_open=True)
    extra: tuple[object, ...] = knob((TopK(),), registry=ROUTERS)


def get_config(arg: str | None = None) -> object:
    from moejax.config import parse_argument, to_config_dict

    a = parse_argument(arg, size=("nano", "tiny"), quick=False)
    return to_config_dict(Experiment(name=a.size, quick=a.quick))
