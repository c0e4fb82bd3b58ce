"""Rows of a batch: which of them a process builds, and how they become one global array."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from moejax.sharding.specs import batch_spec


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of batches of one size, on a mesh (None: on one device)."""

    mesh: Mesh | None
    batch_size: int

    @functools.cached_property
    def mine(self) -> np.ndarray:
        """int64: numbers of the rows that this process' devices hold, ascending."""
        if self.mesh is None:
            return np.arange(self.batch_size)
        sharding = NamedSharding(self.mesh, batch_spec(self.mesh))
        held = sharding.addressable_devices_indices_map((self.batch_size,)).values()
        return np.unique(np.concatenate([np.arange(self.batch_size)[index] for index in held]))

    def put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Global arrays out of this process' rows.

        Args:
          batch: arrays of the rows `mine`, in that order.
        """
        if self.mesh is None:
            return dict(jax.device_put(batch))
        sharding = NamedSharding(self.mesh, batch_spec(self.mesh))

        def one(array: np.ndarray) -> jax.Array:
            def shard(index: Any) -> np.ndarray:
                rows = np.arange(self.batch_size)[index[0]]
                return array[np.searchsorted(self.mine, rows)]

            shape = (self.batch_size, *array.shape[1:])
            return jax.make_array_from_callback(shape, sharding, shard)

        return {name: one(array) for name, array in batch.items()}

    def put_whole(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """As `put`, of a batch that every process has built whole."""
        return self.put({name: array[self.mine] for name, array in batch.items()})
