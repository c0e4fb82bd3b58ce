"""How much a method trains, and methods that train equally much."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from moejax.config.knobs import ConfigError
from moejax.finetune.methods import LoRA, MultiLoRA, Partial
from moejax.models import ModelConfig, Transformer
from moejax.probe.opened import Say
from moejax.train.tuning import count


def trainable_parameters(method: Any, config: ModelConfig) -> int:
    """Numbers that a method trains in a model; nothing is computed.

    Raises:
      ConfigError: the method does not fit the model.
    """
    model = Transformer(config)
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    trainable, _ = jax.eval_shape(method.plan(model, params).split, params, jax.random.key(0))
    return count(trainable)


NEAR = 0.1
"""Part by which a matched size may differ without a word."""


def total_parameters(config: ModelConfig) -> int:
    """Numbers in a model: norms and routers too, without the padding of a mesh."""
    params, _ = jax.eval_shape(Transformer(config).init, jax.random.key(0))
    return count(params)


def matched(method: Any, config: ModelConfig, wanted: int, say: Say = print) -> Any:
    """The method with the size that comes nearest to a number of trainable parameters: another
    rank of LoRA or MultiLoRA, other top layers of partial fine-tuning.

    Args:
      method: its size does not matter.
      config: the model.
      wanted: trainable parameters.
      say: told where the nearest size is more than 10 % off.

    Raises:
      ConfigError: a method without a size, or one that does not fit the model.
    """
    if isinstance(method, Partial):
        sizes = [dataclasses.replace(method, top_layers=n) for n in range(1, config.num_layers + 1)]
        nearest = min(sizes, key=lambda one: abs(trainable_parameters(one, config) - wanted))
        return _told(nearest, config, wanted, say)
    if not isinstance(method, LoRA | MultiLoRA):
        raise ConfigError(
            f"match: {type(method).__name__} trains what it is told to; only lora, multilora and "
            "partial have a size to choose"
        )
    # Linear in the rank: MultiLoRA's s does not grow with it.
    one, two = (
        trainable_parameters(dataclasses.replace(method, rank=rank), config) for rank in (1, 2)
    )
    rank = 1 + max(0, round((wanted - one) / (two - one)))
    return _told(dataclasses.replace(method, rank=rank), config, wanted, say)


def _told(method: Any, config: ModelConfig, wanted: int, say: Say) -> Any:
    """The method; says so where it is not as large as wanted."""
    found = trainable_parameters(method, config)
    if abs(found - wanted) > NEAR * wanted:
        size = (
            f"{method.top_layers} layers" if isinstance(method, Partial) else f"rank {method.rank}"
        )
        say(
            f"note: match: the nearest size of {type(method).__name__} ({size}) trains {found} "
            f"parameters, {wanted} were to be matched"
        )
    return method
