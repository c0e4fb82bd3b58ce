"""The ledger: every assignment a router asked for is either kept or dropped by a named cause."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from moejax.routing.contract import Routing

CAUSES = ("k_max", "capacity", "row_budget", "exchange_send", "exchange_receive")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ledger:
    """Counts of assignments (int32 scalars): `kept + sum(dropped) == requested`, always.

    Attributes:
      requested: what the rule asked for, before any bound.
      kept: what the experts computed.
      k_max: cut by the router's own bound on experts per token.
      capacity: turned away by a full expert.
      row_budget: turned away by the bound on rows of the whole batch.
      exchange_send, exchange_receive: overflowed a bounded buffer between devices.
    """

    requested: jax.Array
    kept: jax.Array
    k_max: jax.Array
    capacity: jax.Array
    row_budget: jax.Array
    exchange_send: jax.Array
    exchange_receive: jax.Array

    @property
    def dropped(self) -> dict[str, jax.Array]:
        """Drops by cause."""
        return {cause: getattr(self, cause) for cause in CAUSES}

    @property
    def balanced(self) -> jax.Array:
        """bool: the books agree."""
        return self.kept + sum(self.dropped.values(), jnp.int32(0)) == self.requested

    def drop(self, cause: str, count: jax.Array) -> Ledger:
        """The ledger after `count` more assignments were dropped for `cause`."""
        return dataclasses.replace(
            self, **{cause: getattr(self, cause) + count, "kept": self.kept - count}
        )


def open_ledger(routing: Routing) -> Ledger:
    """The books as the router hands them over: what it cut itself is `k_max`."""
    requested = routing.requested_T.sum(dtype=jnp.int32)
    kept = routing.filled_TK.sum(dtype=jnp.int32)
    zero = jnp.zeros((), jnp.int32)
    return Ledger(requested, kept, requested - kept, zero, zero, zero, zero)
