"""Spectra of what fine-tuning added to each matrix: `RUN/adapter/spectrum.json`, without trust.

`python -m tools.adapter spectrum` writes them (docs/finetuning.md).
"""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moejax.analysis.records import is_int, number, read_record, string
from moejax.config.knobs import ConfigError

FORMAT_VERSION = 1
PLACE = ("adapter", "spectrum.json")
MAX_MATRICES, MAX_VALUES = 1 << 16, 1 << 12


@dataclasses.dataclass(frozen=True, eq=False)
class Matrix:
    """The change of one matrix.

    Attributes:
      path: of its parameter; `layer` of the model, -1 where it is of none; `expert` of the layer,
        -1 where it is not one of an expert.
      rank: singular values above rounding.
      energy_R: the largest singular values squared, as shares of the whole change's squared norm.
      top1, top4: share of the largest one, of the four largest.
      effective_rank: as its file defines it; as many as there are if all are equal.
    """

    path: str
    layer: int
    expert: int
    rank: int
    energy_R: NDArray[np.float64]
    top1: float
    top4: float
    effective_rank: float


def read_spectrum(path: str | os.PathLike[str]) -> tuple[Matrix, ...]:
    """Reads spectra; none where there is no such file.

    Raises:
      ConfigError: one line: too large, not JSON, of another version, or no list of matrices.
    """
    path = Path(path)
    if not path.is_file():
        return ()
    record = read_record(path, FORMAT_VERSION)
    listed = record.get("matrices")
    if not isinstance(listed, list) or len(listed) > MAX_MATRICES:
        raise ConfigError(f"{path}: matrices is no list of at most {MAX_MATRICES:,}")
    return tuple(_matrix(path, i, one) for i, one in enumerate(listed))


def _matrix(path: Path, i: int, value: Any) -> Matrix:
    own = value if isinstance(value, dict) else {}
    listed = own.get("singular_values")
    values = [number(one) for one in listed] if isinstance(listed, list) else []
    if not 0 < len(values) <= MAX_VALUES or not all(math.isfinite(v) and v >= 0 for v in values):
        raise ConfigError(f"{path}: matrices[{i}] has no singular values")
    energy_R = np.square(np.sort(np.array(values, np.float64))[::-1])
    if energy_R.sum() > 1.001:
        raise ConfigError(f"{path}: matrices[{i}]: singular values are not divided by the norm")
    return Matrix(
        path=string(own.get("path")),
        layer=_index(own.get("layer")),
        expert=_index(own.get("expert")),
        rank=_index(own.get("rank")),
        energy_R=energy_R,
        top1=number(own.get("share_top1")),
        top4=number(own.get("share_top4")),
        effective_rank=number(own.get("effective_rank")),
    )


def _index(value: Any) -> int:
    return value if is_int(value) and 0 <= value < 1 << 31 else -1
