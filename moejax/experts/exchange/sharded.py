"""`expert_ffn` on a mesh: tokens to their experts, computation, and back.

One `jax.shard_map`, manual over the whole mesh: each device sees its own rows of the batch and its
own slots of the placement. Routing has been decided before, over the whole batch, by the same
code as on one device.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from moejax.config.knobs import ConfigError
from moejax.experts.exchange.all_to_all import all_to_all
from moejax.experts.exchange.allgather import allgather, alone
from moejax.experts.exchange.config import ExchangeConfig
from moejax.experts.exchange.local import Compute, Exchange, Local, Pieces
from moejax.experts.exchange.placement import Placement, placement
from moejax.experts.exchange.ragged import ragged
from moejax.experts.spec import ROOM, ExpertsSpec, Weights
from moejax.routing.contract import Routing
from moejax.sharding import BATCH_AXES, batch_spec

EXCHANGES: dict[str, Exchange] = {
    "allgather": allgather,
    "all_to_all": all_to_all,
    "ragged": ragged,
}
WEIGHTS = PartitionSpec(("expert", "tensor"), None, "fsdp")
"""Units of a layer over the devices that compute them, in shards along the model width: gathered
inside, so that their gradients are reduced and scattered in one."""


@dataclasses.dataclass(frozen=True)
class Parallel:
    """A mesh and how experts are reached on it (hashable, static).

    Attributes:
      mesh: axes `data, fsdp, expert, tensor`.
      exchange: knobs.
    """

    mesh: Mesh
    exchange: ExchangeConfig = ExchangeConfig()

    def placement(self, spec: ExpertsSpec) -> Placement:
        """Where the units of a layer live.

        Raises:
          ConfigError: an expert has fewer units than there are devices to split it over.
        """
        tensor = self.mesh.shape["tensor"]
        least = min(units for units in spec.units if units)
        if least < tensor:
            width = least * spec.unit
            common = math.gcd(*spec.units) * spec.unit  # every expert is whole units
            fits = [u for u in range(1, common + 1) if common % u == 0 and u * tensor <= width]
            near = max(fits, key=lambda u: (common % (u * tensor) == 0, u), default=1)
            raise ConfigError(
                f"config.mesh.tensor={tensor}: an expert of {width} hidden units is {least} "
                f"storage unit(s) of {spec.unit} and cannot be split; nearest valid value "
                f"config.model.moe.widths.unit={near}"
            )
        return placement(spec.units, self.mesh.shape["expert"], tensor)


def sharded_expert_ffn(
    x_TD: jax.Array,
    routing: Routing,
    weights: Weights,
    spec: ExpertsSpec,
    parallel: Parallel,
    compute: Compute,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What the experts make of every token, with weights in stored order (`Placement`).

    Args:
      x_TD, routing: the whole batch, rows in order of the mesh's batch axes.
      compute: the back end of each device.

    Raises:
      ConfigError: tokens that do not divide over the batch axes.

    Returns:
      `y_TD`, and bool `[T, K]` by cause of drop: assignments that found no room on the way.
    """
    mesh, placed = parallel.mesh, parallel.placement(spec)
    widths = tuple(units * spec.unit for units in placed.slot_units)
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if x_TD.shape[0] % parts:
        near = math.ceil(x_TD.shape[0] / parts) * parts
        raise ConfigError(
            f"{x_TD.shape[0]} tokens do not divide over {parts} shards of the batch; nearest valid "
            f"value {near}"
        )
    tokens = x_TD.shape[0] // parts
    planned = spec.rows_per_token / ROOM * tokens * placed.mean_pieces
    local = Local(dataclasses.replace(spec, widths=widths), placed.devices, planned, compute)
    device_EM, slot_EM = placed.tables()
    exchange = EXCHANGES[parallel.exchange.kind] if placed.devices > 1 else alone

    def on_device(
        x_TD: jax.Array, expert_TK: jax.Array, weight_TK: jax.Array, weights: Weights
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        weights = jax.tree.map(
            lambda leaf: lax.all_gather(leaf, "fsdp", axis=2, tiled=True), weights
        )
        pieces = Pieces(jnp.asarray(device_EM)[expert_TK], jnp.asarray(slot_EM)[expert_TK])
        return exchange(local, parallel.exchange, x_TD, pieces, weight_TK, weights)

    rows = batch_spec(mesh)
    # check_vma=False: the tile loops of a custom VJP run a number of times that is data, which does
    # not type-check; the equality battery (tests/sharding) is the guard.
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(rows, rows, rows, WEIGHTS),
        out_specs=rows,
        check_vma=False,
    )(x_TD, routing.expert_TK, routing.weight_TK, weights)
