"""A balanced sample: which windows of which documents are traced.

A *unit* is a document, or all documents that say the same in several languages (equal `parallel`).
A *stratum* are the units of one domain and language; of one domain where units are parallel. The
next window always comes from the stratum with the fewest tokens per language so far, from its next
unit. A document gives one window at a time, from a place in it that differs from document to
document (the same place in all documents of a unit), and a second one only after all others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from moejax.data.evaluation import EvaluationDocument

_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclasses.dataclass(frozen=True)
class Window:
    """Tokens `[start, stop)` of a document, by its number."""

    document: int
    start: int
    stop: int


@dataclasses.dataclass
class _Stratum:
    """The units of one domain (and language), and how far they are used."""

    units: list[list[int]] = dataclasses.field(default_factory=list)
    languages: set[str] = dataclasses.field(default_factory=set)
    tokens: int = 0
    visits: int = 0

    @property
    def filled(self) -> float:
        return self.tokens / len(self.languages)


def choose_windows(
    documents: Sequence[EvaluationDocument],
    encode: Callable[[int], NDArray[np.int32]],
    tokens: int,
    seq_len: int,
) -> list[Window]:
    """The windows, strata in turn; the same for the same documents.

    Args:
      documents: all of them.
      encode: ids of the document of a number; asked only for those that are looked at.
      tokens: how many are wanted at most.
      seq_len: longest window. Shorter ones are cut where `tokens` would not reach for one of every
        domain and language.
    """
    strata = _strata(documents)
    groups = sum(len(stratum.languages) for stratum in strata)
    length = min(seq_len, max(tokens // max(groups, 1), 1))
    lengths: dict[int, int] = {}
    chosen: list[Window] = []
    total = 0
    live = list(strata)
    while live and total < tokens:
        stratum = min(live, key=lambda one: one.filled)  # the first of equals
        unit = _next_unit(stratum, length, lengths, encode)
        if unit is None:
            live.remove(stratum)
            continue
        taken = [w for w in unit if w.stop > w.start]
        size = sum(w.stop - w.start for w in taken)
        if total + size > tokens:
            if len(taken) == 1:
                cut = dataclasses.replace(taken[0], stop=taken[0].start + tokens - total)
                chosen.append(cut)
            break
        chosen += taken
        stratum.tokens += size
        total += size
    return chosen


def _strata(documents: Sequence[EvaluationDocument]) -> list[_Stratum]:
    strata: dict[tuple[str, str | None], _Stratum] = {}
    units: dict[tuple[str, int], list[int]] = {}
    for number, document in enumerate(documents):
        parallel = document.parallel
        key = document.domain, document.language if parallel is None else None
        stratum = strata.setdefault(key, _Stratum())
        stratum.languages.add(document.language)
        if parallel is None:
            stratum.units.append([number])
        elif (document.domain, parallel) in units:
            units[document.domain, parallel].append(number)
        else:
            stratum.units.append([number])
            units[document.domain, parallel] = stratum.units[-1]
    return list(strata.values())


def _next_unit(
    stratum: _Stratum, length: int, lengths: dict[int, int], encode: Callable[[int], NDArray]
) -> list[Window] | None:
    """A window of each document of the next unit that has one left; None when all are used."""
    count = len(stratum.units)
    for _ in range(count):
        rank, turn = stratum.visits % count, stratum.visits // count
        stratum.visits += 1
        windows = []
        for number in stratum.units[rank]:
            if number not in lengths:
                lengths[number] = len(encode(number))
            there = -(-lengths[number] // length)
            if turn < there:
                index = (int(rank * _GOLDEN % 1 * there) + turn) % there
                stop = min((index + 1) * length, lengths[number])
                windows.append(Window(number, index * length, stop))
        if windows:
            return windows
    return None
