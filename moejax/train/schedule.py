"""Learning-rate schedules: a multiplier of the peak rate as a function of the step."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from moejax.config.durations import to_steps
from moejax.config.knobs import ConfigError, knob


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up from 0, then a shape.

    `wsd` stays flat and falls linearly at the end, `cosine` falls along half a period, both to the
    final fraction; `constant` stays; `steps` multiplies the rate at every milestone (DeepSeekMoE:
    x0.316 at 80 % and 90 %); `rsqrt` falls as `sqrt(warm-up / step)` (Transformer, T5, GShard).
    """

    kind: str = knob(
        "wsd",
        doc="shape after warm-up",
        choices=("wsd", "cosine", "constant", "steps", "rsqrt"),
    )
    warmup: int | str = knob("5%", unit="steps | tokens | percent", doc="linear warm-up from 0")
    decay: int | str = knob("20%", unit="steps | tokens | percent", doc="final decay of wsd")
    final_fraction: float = knob(
        0.1,
        doc="learning rate of the last step of wsd and cosine as a fraction of the peak",
        low=0.0,
        high=1.0,
    )
    milestones: tuple[int | str, ...] = knob(
        ("80%", "90%"),
        unit="steps | tokens | percent",
        doc="the points after which `steps` multiplies the rate by `factor`, in order",
    )
    factor: float = knob(
        0.316, doc="factor of `steps` at each milestone", low=0.0, low_open=True, high=1.0
    )

    def lengths(self, total_steps: int, tokens_per_step: int, path: str) -> tuple[int, int]:
        """Warm-up and decay in steps.

        Raises:
          ConfigError: they, or the milestones, do not fit into the run.
        """

        def steps(duration: int | str, key: str) -> int:
            return to_steps(
                duration,
                total_steps=total_steps,
                tokens_per_step=tokens_per_step,
                path=f"{path}.{key}",
            )

        warmup = steps(self.warmup, "warmup")
        decay = steps(self.decay, "decay") if self.kind == "wsd" else 0
        if warmup > total_steps:
            raise ConfigError(
                f"{path}.warmup={self.warmup}: {warmup} steps of warm-up are longer than the run "
                f"of {total_steps}; at most {total_steps}"
            )
        if warmup + decay > total_steps:
            raise ConfigError(
                f"{path}.decay={self.decay}: warm-up ({warmup}) and decay ({decay}) together are "
                f"longer than the run of {total_steps}; at most {total_steps - warmup}"
            )
        self.milestone_steps(total_steps, tokens_per_step, path)
        return warmup, decay

    def milestone_steps(self, total_steps: int, tokens_per_step: int, path: str) -> tuple[int, ...]:
        """Milestones in steps; () for every kind but `steps`. In a short run some may coincide.

        Raises:
          ConfigError: none at all, out of order, or past the end of the run.
        """
        if self.kind != "steps":
            return ()
        if not self.milestones:
            raise ConfigError(
                f"{path}.milestones=(): kind=steps needs at least one; nearest valid value ('80%',)"
            )
        found = [
            to_steps(
                milestone,
                total_steps=total_steps,
                tokens_per_step=tokens_per_step,
                path=f"{path}.milestones[{index}]",
            )
            for index, milestone in enumerate(self.milestones)
        ]
        for index, (here, following) in enumerate(itertools.pairwise((*found, total_steps))):
            if here > following:
                raise ConfigError(
                    f"{path}.milestones[{index}]={self.milestones[index]}: step {here} is after "
                    f"the next milestone or the end of the run; at most {following}"
                )
        return tuple(found)


def multiplier(
    config: ScheduleConfig, total_steps: int, tokens_per_step: int
) -> Callable[[jax.Array], jax.Array]:
    """The schedule as `f(steps already done, int32) -> float32 in (0, 1]`.

    The first step of a warm-up of `W` steps runs at `1/W`, step `W` at the peak, and the last step
    of the run (`total_steps`) at `final_fraction` (`wsd`, `cosine`). `steps` has its whole effect
    from the step after a milestone on: with `80%` of 10 steps, steps 9 and 10.
    """
    warmup, decay = config.lengths(total_steps, tokens_per_step, "config.schedule")
    milestones = config.milestone_steps(total_steps, tokens_per_step, "config.schedule")
    last = config.final_fraction

    def at(done: jax.Array) -> jax.Array:
        step = jnp.asarray(done, jnp.float32) + 1.0
        rise = jnp.minimum(step / warmup, 1.0) if warmup else jnp.float32(1.0)
        fall = jnp.float32(1.0)
        if config.kind == "wsd" and decay:
            progress = jnp.clip((step - (total_steps - decay)) / decay, 0.0, 1.0)
            fall = 1.0 - (1.0 - last) * progress
        elif config.kind == "cosine" and total_steps > warmup:
            progress = jnp.clip((step - warmup) / (total_steps - warmup), 0.0, 1.0)
            fall = last + (1.0 - last) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        elif config.kind == "steps":
            passed = sum((step > milestone).astype(jnp.float32) for milestone in milestones)
            fall = config.factor**passed
        elif config.kind == "rsqrt":
            fall = jax.lax.rsqrt(jnp.maximum(step / max(warmup, 1), 1.0))
        return (rise * fall).astype(jnp.float32)

    return at
