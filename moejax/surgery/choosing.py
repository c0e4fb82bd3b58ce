"""Which experts one pruning takes, from what a run directory holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moejax.analysis.arrays import ArrayFileError
from moejax.analysis.pruning import FREQUENCY, MAGNITUDE, RANDOM
from moejax.analysis.traces import Labels, Trace, find_traces, read_labels, read_trace
from moejax.config import ConfigError, nearest
from moejax.models import ModelConfig
from moejax.surgery.layers import Tree
from moejax.surgery.pruning import REMOVE, magnitude
from moejax.surgery.ranking import (
    UNIFORM,
    Bools,
    Floats,
    activation_frequency,
    keep_mask,
    random_mask,
)

SCORES = (FREQUENCY, RANDOM, MAGNITUDE)


@dataclasses.dataclass(frozen=True)
class Pruning:
    """Which experts go, and what becomes of the router.

    Attributes:
      rate: share of the experts that go.
      score: what they are chosen by: frequency, random or magnitude.
      spread: of `ranking.SPREADS`. Random takes as many of each layer as frequency would.
      least: experts that a layer keeps at least.
      trace: folder of the trace that frequencies are counted in; "": the trainer's own.
      language: of that trace; "": all tokens.
      router: of `pruning.ROUTERS_AFTER`.
    """

    rate: float = 0.3
    score: str = FREQUENCY
    spread: str = UNIFORM
    least: int = 1
    trace: str = ""
    language: str = ""
    router: str = REMOVE

    @property
    def needs_trace(self) -> bool:
        """Whether frequencies have a say."""
        return self.score == FREQUENCY or (self.score == RANDOM and self.spread != UNIFORM)


def choose(
    root: Path, step: int, model: ModelConfig, tree: Tree, how: Pruning, seed: int
) -> tuple[Bools, Floats]:
    """bool `[L, E]` the experts that stay, and the scores they were chosen by (NaN: random).

    Raises:
      ConfigError: there is no such trace, language or score; or as `keep_mask`.
    """
    if how.score not in SCORES:
        known = ", ".join(SCORES)
        raise ConfigError(f"--score={how.score!r}: one of {known}{nearest(how.score, SCORES)}")
    moes = [moe for moe in model.plan() if moe is not None]
    if not moes:
        raise ConfigError("the model has no MoE layer; nearest valid a run with model.moe")
    most = max(moe.experts for moe in moes)
    exists_LE = np.array([[expert < moe.experts for expert in range(most)] for moe in moes])
    score_LE = np.where(exists_LE, 0.0, np.nan)
    if how.needs_trace:
        trace, labels = trace_of(root, how.trace, step)
        if trace.num_layers != len(moes) or trace.num_experts < most:
            raise ConfigError(f"{root}: the trace {how.trace!r} is of another model")
        where_T = _tokens_of(trace, labels, how.language)
        score_LE = np.where(exists_LE, activation_frequency(trace, where_T)[:, :most], np.nan)
    elif how.score == MAGNITUDE:
        score_LE = np.where(exists_LE, magnitude(model, tree), np.nan)
    keep_LE = keep_mask(score_LE, how.rate, how.spread, how.least)
    if how.score == RANDOM:
        return random_mask(keep_LE, exists_LE, seed), np.full_like(score_LE, np.nan)
    return keep_LE, score_LE


def trace_of(root: Path, corpus: str, step: int) -> tuple[Trace, Labels]:
    """The trace of a checkpoint in a folder of the run, and its labels.

    Raises:
      ConfigError: there is none, or it cannot be read.
    """
    files = find_traces(root)
    own = [file for file in files if file.corpus == corpus and file.step == step]
    if not own:
        there = sorted({f"{file.corpus or '(the trainer)'} {file.step}" for file in files})
        known = f" (there are: {', '.join(there[:8])})" if there else ""
        raise ConfigError(
            f"--trace={corpus}: {root} has no such trace of step {step}{known}; nearest valid: "
            f"first python -m tools.trace --run={root} --corpus=..., then its folder here"
        )
    try:
        trace = read_trace(own[-1].path)
    except ArrayFileError as error:
        raise ConfigError(str(error)) from error
    place = own[-1].labels if own[-1].labels.is_file() else root / "data.json"
    return trace, read_labels(place)


def _tokens_of(trace: Trace, labels: Labels, language: str) -> NDArray[np.bool_] | None:
    if not language:
        return None
    if language not in labels.languages or trace.language_T is None:
        known = ", ".join(labels.languages)
        raise ConfigError(
            f"--language={language}: the trace has no such{nearest(language, labels.languages)}; "
            f"known: {known}"
        )
    where_T = trace.language_T == labels.languages.index(language)
    if not where_T.any():
        raise ConfigError(f"--language={language}: no token of the trace is of it")
    return np.asarray(where_T)
