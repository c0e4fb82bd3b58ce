"""Fine-grained segmentation and shared-expert isolation (DeepSeekMoE, 2401.06066, section 3)."""

from __future__ import annotations

import dataclasses

from moejax.config.knobs import ConfigError
from moejax.config.widths import WidthPlan
from moejax.experts.config import MoeConfig


def fine_grained(config: MoeConfig, m: int, shared: int = 0) -> MoeConfig:
    """The layer with each expert cut into `m`, and `shared` of the pieces always active.

    `N` experts of width `w`, `K` of them active, become `m N - shared` routed experts of width
    `w / m`, `m K - shared` of them active, and a shared expert of width `shared * w / m`. Total
    and active parameters stay as they were (the router's aside); `m=1, shared=0` changes nothing.
    DeepSeekMoE 2B is `m=4, shared=1` of 16 experts, 2 active: 1 + 63 experts, 1 + 7 active.

    Args:
      config: a layer of equally wide experts whose router has a knob `k`. A shared expert that it
        has already becomes so much wider.
      m: pieces per expert, a divisor of the width.
      shared: pieces that every token uses, fewer than `m K`.

    Raises:
      ConfigError: the layer cannot be cut like this.
    """
    (width, *others) = config.widths.widths(config.experts)
    if set(others) - {width}:
        raise ConfigError(
            f"fine_grained: experts of different widths have no common piece; nearest valid value "
            f"widths.strategy='uniform', got {config.widths.strategy!r}"
        )
    if config.zero_compute.total:
        raise ConfigError(
            f"fine_grained: {config.zero_compute.total} experts compute nothing and cannot be cut; "
            f"nearest valid value zero_compute=ZeroCompute()"
        )
    k = getattr(config.router, "k", None)
    if not isinstance(k, int):
        raise ConfigError(
            f"fine_grained: router {type(config.router).__name__} does not say how many experts a "
            f"token uses; nearest valid value a router with a knob k, such as top_k"
        )
    if m < 1 or width % m:
        divisors = [d for d in range(1, width + 1) if width % d == 0]
        near = min(divisors, key=lambda d: abs(d - m))
        raise ConfigError(
            f"fine_grained: m={m} does not divide width {width}; nearest valid value {near}"
        )
    if not 0 <= shared < m * k:
        raise ConfigError(
            f"fine_grained: shared={shared} of {m * k} active experts; "
            f"nearest valid value {min(max(shared, 0), m * k - 1)}"
        )
    if m == 1 and shared == 0:
        return config
    piece, unit = width // m, config.widths.unit
    return dataclasses.replace(
        config,
        experts=m * config.experts - shared,
        widths=WidthPlan(mean=piece, unit=unit if unit and piece % unit == 0 else 0),
        router=dataclasses.replace(config.router, k=m * k - shared),  # type: ignore[call-arg]
        shared_width=config.shared_width + shared * piece,
    )
