"""`Trace`: what a model did with each token of a text. Columns, their checks, their two dtypes.

A trace lies in a file in small dtypes (`Column.stored`) and is held in those that arithmetic
wants (`Column.held`): half precision becomes float32, "none" becomes NaN. docs/traces.md has the
same table in words.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

EMPTY_SLOT = 65535
"""An empty slot of `expert_LTK`."""
NO_TAG = 255
"""`pos_T` of a token without a part of speech."""
NO_COUNT = 65535
"""`need_LTQ` in a file where the router has no distribution (NaN in a `Trace`)."""


class TraceError(ValueError):
    """One line: which array, what is wrong."""


@dataclasses.dataclass(frozen=True)
class Column:
    """One array of a trace.

    Attributes:
      axes: its axis letters.
      stored: dtype in a file.
      held: dtype in a `Trace`.
      required: whether every trace has it.
    """

    axes: str
    stored: str
    held: str
    required: bool = False


COLUMNS: dict[str, Column] = {
    "layers_L": Column("L", "<i4", "int32", True),
    "width_LE": Column("LE", "<i4", "int32", True),
    "expert_LTK": Column("LTK", "<u2", "uint16", True),
    "weight_LTK": Column("LTK", "<f2", "float32"),
    "active_LT": Column("LT", "<u2", "uint16"),
    "width_LT": Column("LT", "<i4", "int32"),
    "token_T": Column("T", "<i4", "int32"),
    "target_T": Column("T", "<i4", "int32"),
    "predicted_T": Column("T", "<i4", "int32"),
    "class_T": Column("T", "|u1", "uint8"),
    "frequency_rank_T": Column("T", "<i4", "int32"),
    "domain_T": Column("T", "|u1", "uint8"),
    "language_T": Column("T", "|u1", "uint8"),
    "sequence_T": Column("T", "<i4", "int32"),
    "position_T": Column("T", "<i4", "int32"),
    "pos_T": Column("T", "|u1", "uint8"),
    "difficulty_T": Column("T", "<f4", "float32"),
    "parallel_T": Column("T", "<i4", "int32"),
    "loss_T": Column("T", "<f4", "float32"),
    "entropy_LT": Column("LT", "<f2", "float32"),
    "top1_LT": Column("LT", "<f2", "float32"),
    "margin_LT": Column("LT", "<f2", "float32"),
    "need_LTQ": Column("LTQ", "<u2", "float32"),
    "need_p_Q": Column("Q", "<f4", "float32"),
    "probs_LTE": Column("LTE", "<f2", "float16"),
}
"""All arrays of a trace, in the order of the file."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """Tokens of a text, and where every MoE layer sent them.

    Axis letters: `L` MoE layers, `T` tokens (padding left out; tokens of a sequence are neighbours,
    in their order), `K` slots per token, `E` experts (of the layer with most), `Q` thresholds. Only
    the first three arrays are always there; `make_trace` fills in `active_LT` and `width_LT`.

    Attributes:
      layers_L: int32, index of each MoE layer in the model, ascending. L is 0 for a dense model.
      width_LE: int32, hidden units of each expert; 0: it computes nothing; -1: the layer has no
        such expert.
      expert_LTK: uint16, experts in the order of the router's list; `EMPTY_SLOT`: none.
      weight_LTK: float32, combine weight of each slot, 0 where it is empty.
      active_LT: uint16, filled slots.
      width_LT: int32, hidden units of the token's experts together.
      token_T, target_T: int32, id of the token that went in, and of the one that comes next.
      predicted_T: int32, id with the largest logit.
      class_T: uint8, index into `Labels.token_classes`.
      frequency_rank_T: int32, rank of the token's id in the training text; 0: most frequent.
      domain_T, language_T: uint8, indices into `Labels.domains`, `Labels.languages`.
      sequence_T: int32, which window of a document; ascending.
      position_T: int32, place in what the model sees of its document, from 0.
      pos_T: uint8, index into `Labels.parts_of_speech`; `NO_TAG`: none.
      difficulty_T: float32, of the document, harder is higher; NaN: none.
      parallel_T: int32, id of the unit (verse, article) that other languages say too; -1: none.
      loss_T: float32, nats; NaN where the target is not scored.
      entropy_LT: float32, -sum p log p in nats of the router's normalised scores over all experts;
        0..log E. Like the next three NaN where the router has no scores (hash, random), or where
        they are all 0.
      top1_LT: float32, the largest of these probabilities; 1/E..1.
      margin_LT: float32, the largest minus the second; 0..1.
      need_LTQ: float32, how many experts it takes, best first, until their probabilities add up to
        `need_p_Q`; 1..E.
      need_p_Q: float32, the thresholds.
      probs_LTE: float16, the probabilities; 0 for an expert the layer has not.
      step: optimiser steps of the model behind it; None: not known.
    """

    layers_L: NDArray[np.int32]
    width_LE: NDArray[np.int32]
    expert_LTK: NDArray[np.uint16]
    weight_LTK: NDArray[np.float32] | None = None
    active_LT: NDArray[np.uint16] | None = None
    width_LT: NDArray[np.int32] | None = None
    token_T: NDArray[np.int32] | None = None
    target_T: NDArray[np.int32] | None = None
    predicted_T: NDArray[np.int32] | None = None
    class_T: NDArray[np.uint8] | None = None
    frequency_rank_T: NDArray[np.int32] | None = None
    domain_T: NDArray[np.uint8] | None = None
    language_T: NDArray[np.uint8] | None = None
    sequence_T: NDArray[np.int32] | None = None
    position_T: NDArray[np.int32] | None = None
    pos_T: NDArray[np.uint8] | None = None
    difficulty_T: NDArray[np.float32] | None = None
    parallel_T: NDArray[np.int32] | None = None
    loss_T: NDArray[np.float32] | None = None
    entropy_LT: NDArray[np.float32] | None = None
    top1_LT: NDArray[np.float32] | None = None
    margin_LT: NDArray[np.float32] | None = None
    need_LTQ: NDArray[np.float32] | None = None
    need_p_Q: NDArray[np.float32] | None = None
    probs_LTE: NDArray[np.float16] | None = None
    step: int | None = None

    @property
    def num_layers(self) -> int:
        """L."""
        return self.expert_LTK.shape[0]

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.expert_LTK.shape[1]

    @property
    def num_experts(self) -> int:
        """E, of the layer with most."""
        return self.width_LE.shape[1]

    @functools.cached_property
    def exists_LE(self) -> NDArray[np.bool_]:
        """True where the layer has such an expert."""
        return np.asarray(self.width_LE >= 0)

    @functools.cached_property
    def filled_LTK(self) -> NDArray[np.bool_]:
        """True where a slot holds an expert."""
        return np.asarray(self.expert_LTK != EMPTY_SLOT)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays that are there, by name, in the order of `COLUMNS`."""
        found = {name: getattr(self, name) for name in COLUMNS}
        return {name: array for name, array in found.items() if array is not None}


def make_trace(arrays: Mapping[str, NDArray[Any]], step: int | None = None) -> Trace:
    """A `Trace` out of arrays of any dtype that holds their numbers, checked.

    Raises:
      TraceError: an array is missing or unknown, its shape does not fit the others, a number does
        not fit its dtype, or an expert is none of its layer's.
    """
    unknown = [name for name in arrays if name not in COLUMNS]
    if unknown:
        raise TraceError(f"{unknown[0]}: no array of a trace has this name")
    missing = [name for name, c in COLUMNS.items() if c.required and name not in arrays]
    if missing:
        raise TraceError(f"{missing[0]}: is missing")
    held = {name: _held(name, np.asarray(arrays[name])) for name in COLUMNS if name in arrays}
    _check_axes(held)
    _check_experts(held["width_LE"], held["expert_LTK"])
    if ("need_LTQ" in held) != ("need_p_Q" in held):
        raise TraceError("need_LTQ: goes together with need_p_Q")
    filled_LTK = held["expert_LTK"] != EMPTY_SLOT
    held.setdefault("active_LT", filled_LTK.sum(-1).astype(np.uint16))
    if "width_LT" not in held:
        held["width_LT"] = _active_width(held["width_LE"], held["expert_LTK"])
    return Trace(**held, step=step)


def _held(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """The array in its dtype in memory."""
    dtype = np.dtype(COLUMNS[name].held)
    if array.dtype.kind not in ("iu" if dtype.kind in "iu" else "iuf"):
        raise TraceError(f"{name}: dtype {array.dtype}, expected {dtype}")
    if name == "need_LTQ" and array.dtype.kind in "iu":
        return np.where(array == NO_COUNT, np.nan, array).astype(dtype)
    if dtype.kind in "iu" and array.size and not np.can_cast(array.dtype, dtype):
        low, high = int(array.min()), int(array.max())
        bounds = np.iinfo(dtype)
        if low < bounds.min or high > bounds.max:
            raise TraceError(f"{name}: {low if low < bounds.min else high} does not fit {dtype}")
    return np.ascontiguousarray(array, dtype)


def _check_axes(held: Mapping[str, NDArray[Any]]) -> None:
    lengths: dict[str, tuple[int, str]] = {}
    for name, array in held.items():
        axes = COLUMNS[name].axes
        if array.ndim != len(axes):
            raise TraceError(f"{name}: shape {array.shape}, expected axes [{', '.join(axes)}]")
        for axis, length in zip(axes, array.shape, strict=True):
            known, by = lengths.setdefault(axis, (length, name))
            if known != length:
                raise TraceError(f"{name}: axis {axis} is {length} but {known} in {by!r}")
    layers_L = held["layers_L"]
    if np.any(np.diff(layers_L) <= 0) or np.any(layers_L < 0):
        raise TraceError("layers_L: indices of layers must ascend from 0 or more")


def _check_experts(width_LE: NDArray[Any], expert_LTK: NDArray[Any]) -> None:
    if width_LE.shape[1] > EMPTY_SLOT:
        raise TraceError(f"width_LE: {width_LE.shape[1]:,} experts, more than {EMPTY_SLOT:,}")
    if width_LE.size and int(width_LE.min()) < -1:
        raise TraceError(f"width_LE: {int(width_LE.min())} is no width; nearest valid value -1")
    for layer, (width_E, expert_TK) in enumerate(zip(width_LE, expert_LTK, strict=True)):
        exists_E = np.zeros(EMPTY_SLOT + 1, bool)
        exists_E[: len(width_E)] = width_E >= 0
        exists_E[EMPTY_SLOT] = True
        wrong_TK = ~exists_E[expert_TK]
        if wrong_TK.any():
            token, slot = np.argwhere(wrong_TK)[0]
            raise TraceError(
                f"expert_LTK: token {token} of layer row {layer} has the expert "
                f"{expert_TK[token, slot]}, but the layer has {int((width_E >= 0).sum())}"
            )


def _active_width(width_LE: NDArray[Any], expert_LTK: NDArray[Any]) -> NDArray[np.int32]:
    """`[L, T]`: widths of a token's experts, summed."""
    total_LT = np.zeros(expert_LTK.shape[:2], np.int32)
    for layer, (width_E, expert_TK) in enumerate(zip(width_LE, expert_LTK, strict=True)):
        table = np.zeros(EMPTY_SLOT + 1, np.int32)
        table[: len(width_E)] = np.maximum(width_E, 0)
        total_LT[layer] = table[expert_TK].sum(-1)
    return total_LT
