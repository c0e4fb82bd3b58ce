"""Tables of expert ids as a `Trace`: what all importers share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moejax.analysis.traces.trace import EMPTY_SLOT, Trace, TraceError, make_trace
from moejax.config.knobs import ConfigError

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Imported:
    """A trace of another system.

    Attributes:
      trace: every expert has the width 1: only how many experts a token has is known.
      layer_names: what the other system calls each MoE layer, `L` of them.
      origin: what was read, for people: format and names of the files.
      notes: what the reader should know, one line each.
    """

    trace: Trace
    layer_names: tuple[str, ...]
    origin: dict[str, Any]
    notes: tuple[str, ...] = ()


def to_trace(
    expert_LTK: Array,
    layers: Sequence[int],
    *,
    experts: int | None,
    columns: Mapping[str, Array],
    step: int,
    where: str,
) -> Trace:
    """A checked trace out of expert ids.

    Args:
      expert_LTK: integers; -1, or EMPTY_SLOT, for an empty slot.
      layers: index of each layer in the model.
      experts: experts of every layer; None: one more than the highest id that occurs.
      columns: further arrays of a trace.
      step: of the trace.
      where: file, for messages.

    Raises:
      ConfigError: an id out of range, an expert twice for one token, or a column that does not fit.
    """
    empty_LTK = (expert_LTK == -1) | (expert_LTK == EMPTY_SLOT)
    held_LTK = np.where(empty_LTK, 0, expert_LTK)
    highest = int(held_LTK.max(initial=0))
    count = highest + 1 if experts is None else experts
    if not 1 <= count < EMPTY_SLOT:
        raise ConfigError(f"{where}: {count:,} experts; nearest valid value {EMPTY_SLOT - 1:,}")
    wrong_LTK = (held_LTK < 0) | (held_LTK >= count)
    if wrong_LTK.any():
        layer, token, slot = np.argwhere(wrong_LTK)[0]
        raise ConfigError(
            f"{where}: token {token} of layer {layers[layer]} has the expert "
            f"{expert_LTK[layer, token, slot]}; {count} experts are 0 to {count - 1}"
        )
    expert_LTK = np.where(empty_LTK, EMPTY_SLOT, held_LTK).astype(np.uint16)
    _refuse_twice(expert_LTK, layers, where)
    width_LE = np.ones((len(layers), count if len(layers) else 0), np.int32)
    given = {"layers_L": np.asarray(layers, np.int32), "width_LE": width_LE}
    try:
        return make_trace({**given, "expert_LTK": expert_LTK, **columns}, step)
    except TraceError as error:
        raise ConfigError(f"{where}: {error}") from error


def _refuse_twice(expert_LTK: Array, layers: Sequence[int], where: str) -> None:
    for index, expert_TK in zip(layers, expert_LTK, strict=True):
        sorted_TK = np.sort(expert_TK, axis=-1)
        same_TK = (sorted_TK[:, 1:] == sorted_TK[:, :-1]) & (sorted_TK[:, 1:] != EMPTY_SLOT)
        if same_TK.any():
            token, slot = np.argwhere(same_TK)[0]
            raise ConfigError(
                f"{where}: token {token} of layer {index} has the expert {sorted_TK[token, slot]} "
                "twice; a router chooses each at most once"
            )
