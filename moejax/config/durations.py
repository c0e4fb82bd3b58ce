"""Durations: steps, tokens or a share of the run, all turned into optimiser steps."""

from __future__ import annotations

import math
import re

from moejax.config.knobs import ConfigError, nearest, show

_FORM = re.compile(r"\s*([+-]?[0-9][0-9_]*(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z%]*)\s*")
_EXAMPLES = "500, '500 steps', '1e6 tokens' or '10%'"


def to_steps(
    value: int | str,
    *,
    total_steps: int | None,
    tokens_per_step: int,
    path: str = "duration",
) -> int:
    """Converts a duration to whole optimiser steps.

    Args:
      value: 500, "500", "500 steps", "1e6 tokens" (rounded up to whole steps) or "10%" of
        `total_steps` (rounded to the nearest step, at least 1 if above 0 %).
      total_steps: the length of the run in steps; None if the run's own length is being asked,
        when a percentage means nothing.
      tokens_per_step: tokens that one optimiser step consumes.
      path: the dotted name of the value, used in messages.

    Raises:
      ConfigError: no such form or unit, negative, a fraction of a step, more than 100 %.
    """
    if tokens_per_step < 1:
        raise ConfigError(f"{path}: tokens_per_step={tokens_per_step} must be >= 1")
    where = f"{path}={show(value)}"
    if isinstance(value, bool) or not isinstance(value, int | str):
        kind = type(value).__name__
        near = f"; nearest valid value: {round(value)}" if _is_finite_float(value) else ""
        raise ConfigError(f"{where}: expected steps, tokens or percent, got {kind}{near}")
    match = _FORM.fullmatch(str(value))
    if match is None:
        raise ConfigError(f"{where}: is not a duration; nearest valid: {_EXAMPLES}")
    number, unit = float(match[1]), match[2].lower() or "steps"
    if not math.isfinite(number):
        raise ConfigError(f"{where}: is too large a number")
    if number < 0:
        raise ConfigError(f"{where}: must not be negative; nearest valid value: 0")
    if unit in ("step", "steps"):
        if number != round(number):
            raise ConfigError(
                f"{where}: must be whole steps; nearest valid value: {max(1, round(number))}"
            )
        return round(number)
    if unit in ("token", "tokens"):
        return math.ceil(number / tokens_per_step)
    if unit in ("%", "percent"):
        if total_steps is None:
            raise ConfigError(f"{where}: a percentage needs the run's length; give steps or tokens")
        if number > 100:
            raise ConfigError(f"{where}: must be at most 100%; nearest valid value: '100%'")
        # Rounding half up: banker's rounding would make 50 % of 5 steps depend on parity.
        return max(1 if number > 0 else 0, math.floor(number * total_steps / 100 + 0.5))
    hint = nearest(unit, ("steps", "tokens", "percent")) or f"; nearest valid: {_EXAMPLES}"
    raise ConfigError(f"{where}: unknown unit {unit!r}{hint}")


def _is_finite_float(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)
