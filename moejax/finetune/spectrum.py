"""How a fine-tuning has changed each matrix: the singular values of dW (methods.md G).

MultiLoRA's claim is that the largest ones dominate less than LoRA's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moejax.finetune.leaves import Leaf, Tree, flat, leaves_of
from moejax.finetune.lowrank import input_axes

FORMAT_VERSION = 1
KEPT = 64
"""Singular values of a matrix that are written, at most."""

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """The singular values of one matrix.

    Attributes:
      norm: Frobenius norm.
      values: singular values, descending, divided by `norm`: their squares sum to 1.
      rank: how many are more than rounding errors of float32.
    """

    norm: float
    values: Floats
    rank: int

    def share(self, top: int) -> float:
        """Part of the squared Frobenius norm that the largest `top` have."""
        return float(np.square(self.values[:top]).sum())

    @property
    def effective_rank(self) -> float:
        """`exp` of the entropy of the values, divided by their sum (Roy & Vetterli 2007): n for n
        equal values."""
        share = self.values[self.values > 0] / self.values.sum()
        return float(np.exp(-(share * np.log(share)).sum()))


def spectrum(delta: NDArray[Any]) -> Spectrum | None:
    """The singular values of a matrix `[a, b]`; None if it is zero.

    Raises:
      ValueError: not a matrix, or not finite.
    """
    wide = np.asarray(delta, np.float64)
    if wide.ndim != 2 or not np.isfinite(wide).all():
        raise ValueError(f"{wide.shape}: a spectrum is that of a finite matrix")
    norm = float(np.linalg.norm(wide))
    if norm == 0:
        return None
    values = np.asarray(np.linalg.svd(wide, compute_uv=False) / norm, np.float64)
    tolerance = max(wide.shape) * float(np.finfo(np.float32).eps) * values[0]
    return Spectrum(norm, values, int((values > tolerance).sum()))


def matrices(leaf: Leaf, delta: NDArray[Any]) -> Iterator[tuple[int, int | None, NDArray[Any]]]:
    """The matrices `[in, out]` (or its transpose: the singular values are the same) of a stacked
    array: layer, expert (None: not one of an expert) and matrix.

    Args:
      leaf: what the array is; one of routed experts is in the order in which the model holds it.
      delta: of the leaf's shape.
    """
    into = () if leaf.role == "routed" else input_axes(leaf)
    for row, layer in enumerate(leaf.layers):
        if leaf.moe is not None:
            for expert, width in enumerate(leaf.moe.spec.widths):
                if width:
                    units = delta[row][leaf.units_of(expert)]
                    yield layer, expert, units.reshape(width, -1)
            continue
        out = [axis for axis in range(delta[row].ndim) if axis not in into]
        rows = int(np.prod([delta[row].shape[axis] for axis in into]))
        yield layer, None, delta[row].transpose(*into, *out).reshape(rows, -1)


def difference(base: Tree, tuned: Tree) -> dict[str, Floats]:
    """`tuned - base` of the arrays that differ, float64, by path.

    Raises:
      ValueError: not the same arrays.
    """
    before, after = flat(base), flat(tuned)
    if before.keys() != after.keys():
        raise ValueError(f"{min(before.keys() ^ after.keys())}: only one of the models has it")
    deltas = {}
    for path, leaf in before.items():
        delta = np.asarray(after[path], np.float64) - np.asarray(leaf, np.float64)
        if delta.any():
            deltas[path] = delta
    return deltas


def spectra(model: Any, params: Tree, deltas: dict[str, Any]) -> dict[str, Any]:
    """What `spectrum.json` says about a fine-tuning.

    Args:
      model: whose arrays they are.
      params: its parameters, or their shapes.
      deltas: by path what was added to an array: `difference`, or `LowRank.deltas`, which is exact
        however small it is beside the base. Norms, biases and embeddings are left out.

    Returns:
      `{format_version, matrices}`: of each matrix that changed `path, layer, expert` (None: not one
      of an expert), `shape, norm, rank, singular_values` (divided by the norm, the largest `KEPT`),
      `share_top1, share_top4, effective_rank`.
    """
    found = []
    leaves = leaves_of(model, params)
    for path, delta in deltas.items():
        leaf = leaves[path]
        if not leaf.is_matrix or not leaf.layers:
            continue
        for layer, expert, matrix in matrices(leaf, np.asarray(delta)):
            own = spectrum(matrix)
            if own is not None:
                found.append(_record(path, layer, expert, matrix.shape, own))
    return {"format_version": FORMAT_VERSION, "matrices": found}


def _record(
    path: str, layer: int, expert: int | None, shape: tuple[int, ...], own: Spectrum
) -> dict[str, Any]:
    return {
        "path": path,
        "layer": layer,
        "expert": expert,
        "shape": list(shape),
        "norm": own.norm,
        "rank": own.rank,
        "singular_values": [round(float(value), 8) for value in own.values[:KEPT]],
        "share_top1": own.share(1),
        "share_top4": own.share(4),
        "effective_rank": own.effective_rank,
    }
