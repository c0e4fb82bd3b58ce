"""Placement: which device computes which units of which expert.

Every device runs the same program, so every device has the same *slots*, of the same widths;
placement deals experts to slots. Experts of equal width in a number that divides are dealt in
config order and nothing moves. Otherwise experts go by width, widest first, back and forth over
the devices; one that is wider than a device's fair share may be split by units into pieces (an
FFN is a sum over its hidden units, so pieces simply add); slots that are wider than what they
hold, and slots without an expert (63 experts on 8 devices), are filled with zero units.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

PADDING = -1


@dataclasses.dataclass(frozen=True)
class Placement:
    """Static (hashable) description of where expert units live.

    Attributes:
      devices: devices along the `expert` axis (P).
      tensor: devices along the `tensor` axis; each holds an equal share of every slot's units.
      slot_units: units of each slot of a device, one `tensor` share of them.
      source: for each stored unit, in order of expert device, tensor device and slot: the unit in
        config order, or -1 for padding.
      pieces: for each expert, the `(device, slot)` of its pieces; none if it has no units.
    """

    devices: int
    tensor: int
    slot_units: tuple[int, ...]
    source: tuple[int, ...]
    pieces: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def num_units(self) -> int:
        """Stored units, padding included."""
        return len(self.source)

    @property
    def is_config_order(self) -> bool:
        """Whether storage is as in a checkpoint: nothing to move, nothing padded."""
        return self.source == tuple(range(len(self.source)))

    @property
    def num_slots(self) -> int:
        return len(self.slot_units)

    @property
    def max_pieces(self) -> int:
        """Most pieces that an expert is split into."""
        return max(1, *(len(found) for found in self.pieces))

    @property
    def mean_pieces(self) -> float:
        """Pieces of an expert, on average over those that have units."""
        counts = [len(found) for found in self.pieces if found]
        return sum(counts) / max(1, len(counts))

    @property
    def max_over_mean(self) -> float:
        """Placed units of a device (padding included) over the mean of real ones: what the worst
        device computes under perfectly balanced routing, relative to a perfect placement."""
        real = sum(unit != PADDING for unit in self.source)
        return len(self.source) / real if real else 1.0

    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """int32 `[E + 1, M]` each: device and slot of an expert's pieces; out of range
        (`devices`, `num_slots`) where there is none, and in the sentinel's row."""
        shape = (len(self.pieces) + 1, self.max_pieces)
        device_EM = np.full(shape, self.devices, np.int32)
        slot_EM = np.full(shape, self.num_slots, np.int32)
        for expert, found in enumerate(self.pieces):
            for piece, (device, slot) in enumerate(found):
                device_EM[expert, piece], slot_EM[expert, piece] = device, slot
        return device_EM, slot_EM

    def place(self, weight: Any, axis: int) -> Any:
        """Units in config order to stored order; padding becomes zeros."""
        if self.is_config_order:
            return weight
        # -1 would be the last unit; what lies beyond the end is filled.
        beyond = weight.shape[axis]
        index = np.asarray([beyond if unit == PADDING else unit for unit in self.source])
        return jnp.take(weight, index, axis, mode="fill", fill_value=0)

    def restore(self, weight: Any, axis: int) -> Any:
        """Stored order back to config order, without padding."""
        if self.is_config_order:
            return weight
        where = {unit: place for place, unit in enumerate(self.source) if unit != PADDING}
        return jnp.take(weight, np.asarray([where[unit] for unit in range(len(where))]), axis)


@functools.cache
def placement(units: tuple[int, ...], devices: int, tensor: int = 1) -> Placement:
    """Deals experts of `units` storage units each to `devices` x `tensor` devices.

    Of the possible piece sizes the one is taken whose padding and further pieces cost least.
    """
    busy = [expert for expert, own in enumerate(units) if own]
    if len({units[expert] for expert in busy}) == 1 and len(busy) % devices == 0:
        own = units[busy[0]]
        if own % tensor == 0:
            return _dealt(_blocks(busy, own, devices), units, devices, tensor)
    fair = math.ceil(sum(units) / devices)
    sizes = sorted({own for own in units if own} | {math.ceil(fair / n) for n in (1, 2, 3, 4)})
    found = [_dealt(_snake(_cut(units, size), devices), units, devices, tensor) for size in sizes]
    return min(found, key=_cost)


def _cost(one: Placement) -> tuple[float, int]:
    return one.num_units * (1 + PIECE * (one.mean_pieces - 1)), one.num_slots


PIECE = 0.15
"""What a further piece of an expert costs, relative to its computation: its tokens travel to one
more device and are sorted and gathered there. A judgement, not a measurement."""


Piece = tuple[int, int, int]
"""Expert, its first unit in the piece, and how many."""


def _blocks(busy: list[int], own: int, devices: int) -> list[list[Piece]]:
    per_device = len(busy) // devices
    return [
        [(expert, 0, own) for expert in busy[d * per_device : (d + 1) * per_device]]
        for d in range(devices)
    ]


def _cut(units: tuple[int, ...], size: int) -> list[Piece]:
    """Experts in pieces of at most `size` units, as equal as they can be; widest first."""
    pieces = []
    for expert, own in enumerate(units):
        parts = math.ceil(own / size)
        bounds = [own * part // parts for part in range(parts + 1)] if own else []
        pieces += [(expert, low, high - low) for low, high in itertools.pairwise(bounds)]
    return sorted(pieces, key=lambda piece: (-piece[2], piece[0], piece[1]))


def _snake(pieces: list[Piece], devices: int) -> list[list[Piece]]:
    """Row after row of `devices` pieces: slots of one row are nearly equal, so little is padded."""
    dealt: list[list[Piece]] = [[] for _ in range(devices)]
    for index, piece in enumerate(pieces):
        row, column = divmod(index, devices)
        dealt[column if row % 2 == 0 else devices - 1 - column].append(piece)
    return dealt


def _dealt(
    dealt: list[list[Piece]], units: tuple[int, ...], devices: int, tensor: int
) -> Placement:
    num_slots = max(len(own) for own in dealt)
    slot_units = [
        math.ceil(max(own[slot][2] for own in dealt if slot < len(own)) / tensor)
        for slot in range(num_slots)
    ]
    starts = np.concatenate([[0], np.cumsum(units)]).astype(int)
    pieces: list[list[tuple[int, int]]] = [[] for _ in units]
    source: list[int] = []
    for device, own in enumerate(dealt):
        for slot, (expert, _, _) in enumerate(own):
            pieces[expert].append((device, slot))
        for share in range(tensor):
            for slot, width in enumerate(slot_units):
                row = [PADDING] * width
                if slot < len(own):
                    expert, first, count = own[slot]
                    begin = share * width
                    for place in range(max(0, min(width, count - begin))):
                        row[place] = int(starts[expert]) + first + begin + place
                source += row
    return Placement(
        devices=devices,
        tensor=tensor,
        slot_units=tuple(slot_units),
        source=tuple(source),
        pieces=tuple(tuple(found) for found in pieces),
    )
