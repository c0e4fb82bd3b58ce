"""A text in two: on one half frequencies are counted, on the other losses are measured."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from moejax.probe.interventions.sweep import sequences_of
from moejax.probe.rows import LabelledRows
from moejax.surgery.ranking import Bools

Ints = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Halves:
    """The sequences of a text. Axis letter `S`: sequences.

    Attributes:
      calibrate_S: bool, those on which frequencies are counted; losses are measured on the others.
      language_S: int, index of its language.
    """

    calibrate_S: Bools
    language_S: Ints


def halves(rows: LabelledRows) -> Halves:
    """Every second document of each domain and language calibrates, and of documents that say the
    same in several languages every second group."""
    sequence_T = np.concatenate(sequences_of(rows))
    real_T = sequence_T >= 0
    first_S = np.unique(sequence_T[real_T], return_index=True)[1]

    def of_sequence(name: str) -> Ints:
        column = np.concatenate([batch[name].reshape(-1) for batch in rows.batches])
        return column[real_T][first_S].astype(np.int64)

    language_S, domain_S, parallel_S = map(of_sequence, ("language", "domain", "parallel"))
    calibrate_S = np.zeros(len(first_S), bool)
    seen: dict[tuple[int, int], int] = {}
    group_of: dict[tuple[int, int], bool] = {}
    for index, (language, domain, parallel) in enumerate(
        zip(language_S.tolist(), domain_S.tolist(), parallel_S.tolist(), strict=True)
    ):
        key = (domain, parallel)
        if parallel >= 0 and key in group_of:
            calibrate_S[index] = group_of[key]
            continue
        stratum = (domain, -1 if parallel >= 0 else language)
        calibrate_S[index] = seen.get(stratum, 0) % 2 == 0
        seen[stratum] = seen.get(stratum, 0) + 1
        if parallel >= 0:
            group_of[key] = bool(calibrate_S[index])
    return Halves(calibrate_S, language_S)
