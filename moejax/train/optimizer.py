"""AdamW with global-norm clipping and a decay mask chosen by config."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import optax

from moejax.config.knobs import ConfigError, knob

Tree = dict[str, Any]

_NOT_A_MATRIX = re.compile(r"(^|/)([^/]*_)?(norm|scale|bias|b|gain)(_[^/]*)?(/|$)")
"""Vectors by role, not by rank: a scanned segment stacks its norm scales into matrices, so the
rank of a leaf says nothing about what it is."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """`optax.adamw` behind `optax.clip_by_global_norm`."""

    lr: float = knob(3e-3, doc="peak learning rate", low=0.0, low_open=True)
    b1: float = knob(0.9, doc="decay of the first moment", low=0.0, high=1.0, high_open=True)
    b2: float = knob(0.95, doc="decay of the second moment", low=0.0, high=1.0, high_open=True)
    eps: float = knob(1e-8, doc="added to the root of the second moment", low=0.0, low_open=True)
    weight_decay: float = knob(0.1, doc="decoupled weight decay, times the rate", low=0.0)
    decay: str = knob(
        "matrices",
        doc="what decays: everything but norms and biases, all of it, or `decay_patterns`",
        choices=("matrices", "all", "patterns"),
    )
    decay_patterns: tuple[str, ...] = knob(
        (), doc="regular expressions searched in a/b/c parameter paths (decay=patterns)"
    )
    clip_norm: float = knob(1.0, doc="largest global gradient norm; 0 = no clipping", low=0.0)

    def validate(self, path: str) -> None:
        """Raises ConfigError when patterns and choice disagree or a pattern does not compile."""
        if (self.decay == "patterns") != bool(self.decay_patterns):
            raise ConfigError(
                f"{path}.decay_patterns={list(self.decay_patterns)}: needed with decay=patterns, "
                f"and only there; decay is {self.decay!r}"
            )
        for pattern in self.decay_patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"{path}.decay_patterns: {pattern!r}: {error}") from error


def leaf_paths(tree: Any) -> Any:
    """The same tree with every leaf replaced by its `a/b/c` path."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), tree
    )


def decay_mask(config: OptimizerConfig, params: Tree) -> Tree:
    """A tree of bool: which parameters decay.

    Raises:
      ConfigError: a pattern of `decay_patterns` matches no parameter.
    """
    paths = leaf_paths(params)
    if config.decay == "all":
        return jax.tree.map(lambda _: True, paths)
    if config.decay == "matrices":
        return jax.tree.map(lambda path: _NOT_A_MATRIX.search(path) is None, paths)
    names = jax.tree.leaves(paths)
    for pattern in config.decay_patterns:
        if not any(re.search(pattern, name) for name in names):
            raise ConfigError(
                f"config.optimizer.decay_patterns: {pattern!r} matches no parameter; "
                f"there are {', '.join(names[:4])}, ..."
            )
    return jax.tree.map(lambda p: any(re.search(q, p) for q in config.decay_patterns), paths)


def make_optimizer(
    config: OptimizerConfig, schedule: Callable[[jax.Array], jax.Array]
) -> optax.GradientTransformation:
    """The optimiser; `schedule` multiplies the peak rate (see `schedule.multiplier`)."""
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(
        clip,
        optax.adamw(
            lambda count: config.lr * schedule(count),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=lambda params: decay_mask(config, params),
        ),
    )
