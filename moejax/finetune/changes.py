"""What an adapter changes in its base, array by array."""

from __future__ import annotations

from typing import Any

import jax

from moejax.finetune.adapter import Adapter, FittingBase, held_arrays, put_on
from moejax.finetune.lowrank import LowRank
from moejax.finetune.spectrum import difference


def deltas_of(adapter: Adapter, base: FittingBase) -> dict[str, Any]:
    """The change of every array that changed, by path, as the base's model holds it.

    Low-rank updates are taken from their factors: beside the weights they may be too small for the
    difference of two float32 arrays to show them whole.

    Raises:
      ConfigError: the adapter does not fit the model.
    """
    trainable, tuning, _ = held_arrays(adapter, base.model, base.mesh)
    if isinstance(tuning, LowRank):
        return dict(jax.jit(tuning.deltas)(trainable))
    params, _ = put_on(adapter, base.model, base.mesh, base.restored)
    return dict(difference(base.restored.params, params))
