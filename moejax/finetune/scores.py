"""How much a text uses each expert: the scores of ESFT (Wang et al. 2024, arXiv 2407.01906).

NumPy only. Axis letters: `J` samples, `T` tokens of a sample, `E` experts of a layer. A *gate* is
the combine weight of an expert that computed the token, 0 for all others; docs/esft.md says what
that makes of routers that renormalise, scale or do not weigh.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from moejax.config import ConfigError, nearest

Floats = NDArray[np.float64]
Table = Mapping[int, Mapping[int, float]]
"""A score by layer of the model and by expert: those that can be trained, ids ascending."""

GATE, TOKEN = "gate", "token"
SCORES: dict[str, str] = {
    GATE: "average gate score (eq. 6)",
    TOKEN: "token selection ratio (eq. 7)",
}
"""What experts are chosen by: `--score`."""
DIGITS = 4
"""Decimals that scores are published, and compared, with."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where scores come from; what is not known is empty or 0.

    Attributes:
      base_hash: of the parameters that were scored (`moejax.train.base.checkpoint_hash`).
      run, step: the checkpoint.
      task: the text, as it was asked for.
      tokens: how many were counted, in `samples` windows of `length`.
      seed: of the choice of examples.
      experts: by MoE layer how many experts it has that can be trained.
      text_hash: of the windows (`sampling.text_hash`).
    """

    base_hash: str = ""
    run: str = ""
    step: int = 0
    task: str = ""
    tokens: int = 0
    samples: int = 0
    length: int = 0
    seed: int = 0
    experts: Mapping[int, int] = dataclasses.field(default_factory=dict)
    text_hash: str = ""


@dataclasses.dataclass(frozen=True)
class Scores:
    """Both scores of all MoE layers, rounded as published."""

    token: Table
    gate: Table
    origin: Origin = dataclasses.field(default_factory=Origin)

    def of(self, score: str) -> Table:
        """One of them, by its name in `SCORES`.

        Raises:
          ConfigError: there is no such score.
        """
        require_score(score)
        return self.gate if score == GATE else self.token


def require_score(score: str) -> None:
    """Raises ConfigError unless it is a key of `SCORES`."""
    if score not in SCORES:
        known = ", ".join(SCORES)
        raise ConfigError(f"--score={score!r}: one of {known}{nearest(score, SCORES)}")


def average_gate(gate_JTE: Floats) -> Floats:
    """float64 `[E]`: eq. 6, `g_i = mean_j mean_t gate_i`; sums to the mean total gate of a token.

    Args:
      gate_JTE: combine weights, 0 where an expert was not selected.
    """
    return np.asarray(gate_JTE, np.float64).mean(axis=1).mean(axis=0)


def selection_ratio(gate_JTE: Floats, slots_JT: NDArray[np.int64] | int | None = None) -> Floats:
    """float64 `[E]`: eq. 7, `r_i = mean_j mean_t 1(gate_i > 0) / K`.

    Args:
      gate_JTE: as in `average_gate`.
      slots_JT: K, the experts that a token uses: a number for all, or one of each token (rules
        that use as many as they need); None: as many as have a gate above 0. A token without any
        adds 0.
    """
    used_JTE = np.asarray(gate_JTE) > 0
    slots_JT1 = np.asarray(used_JTE.sum(-1) if slots_JT is None else slots_JT)[..., None]
    ratio_JTE = np.where(used_JTE, 1.0 / np.maximum(slots_JT1, 1), 0.0)
    return ratio_JTE.mean(axis=1).mean(axis=0)


def rounded(score_E: Sequence[float] | Floats, experts: Sequence[int] | None = None) -> dict:
    """Scores of a layer as published: `{expert: score}`, 4 decimals.

    Args:
      score_E: of all experts.
      experts: which of them are listed; None: all.

    Raises:
      ConfigError: one is NaN or infinite.
    """
    chosen = range(len(score_E)) if experts is None else experts
    found = {int(expert): round(float(score_E[expert]), DIGITS) for expert in chosen}
    for expert, value in found.items():
        if not np.isfinite(value):
            raise ConfigError(f"the score of expert {expert} is {value}: the model's gates are not")
    return found
