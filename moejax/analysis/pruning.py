"""Studies of pruning: `RUN/pruning/ROUTER/CORPUS/STEP.json`, read without trust.

What the numbers mean is in docs/pruning.md; `moejax.surgery.study` makes them.
"""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moejax.analysis import text
from moejax.analysis.records import (
    MAX_LAYERS,
    Estimate,
    StepFile,
    count,
    estimate,
    find_steps,
    is_int,
    layers,
    listed_rows,
    number,
    numbers,
    read_record,
    string,
)
from moejax.config.files import write_json
from moejax.config.knobs import ConfigError

FORMAT_VERSION = 1
FOLDER = "pruning"
MAX_ROWS = 1 << 14
MAX_LANGUAGES = 256
ALL = ""
"""The name of all languages together."""
FREQUENCY, RANDOM, MAGNITUDE = "frequency", "random", "magnitude"


@dataclasses.dataclass(frozen=True)
class Cut:
    """A model with some experts taken away, and what the held-out text then costs.

    Attributes:
      score: what chose the experts: frequency, random or magnitude; "" for the whole model.
      of: the language whose frequencies they are; `ALL`: those of all languages together.
      spread: how the rate is spread over the layers: uniform, global or proportional.
      rate: share of the experts that was asked to go, 0..1.
      seed: of random; -1: none.
      kept_L: int32 experts that each layer has left.
      parameters: weight matrices of the model that has lost them (docs/models.md, Counts).
      flops_per_token: training FLOPs of that model (forward: a third), at the measured widths.
      tokens_per_second: of the evaluation of the model that has lost them; NaN: not measured.
      loss: nats per scored token, by language.
      change: this loss minus that of the whole model, paired, by language.
    """

    score: str
    of: str
    spread: str
    rate: float
    seed: int
    kept_L: NDArray[np.int32]
    parameters: int
    flops_per_token: float
    tokens_per_second: float
    loss: dict[str, Estimate]
    change: dict[str, Estimate]

    def perplexity(self, language: str = ALL) -> Estimate:
        """exp of the loss and of the ends of its interval."""
        found = self.loss.get(language, Estimate(math.nan, math.nan, math.nan))
        values = (found.mean, found.low, found.high)
        return Estimate(*(math.exp(v) if v < 700 else math.nan for v in values))


@dataclasses.dataclass(frozen=True)
class Study:
    """One checkpoint over one text, with more and more experts gone.

    Attributes:
      router: what becomes of it: remove, keep or all (docs/pruning.md).
      corpus, spec, part: the text, as in `Labels`.
      step: of the checkpoint.
      calibrated_on: the text that frequencies were counted on, in words.
      calibration_tokens: how many those were.
      tokens, sequences: that are scored: none of those that frequencies were counted on.
      tokens_sha256: of all tokens of the text, as in `Labels`.
      languages: those that are scored.
      layers_L, experts_L: int32, model indices of the MoE layers, and the experts of each.
      whole: the model that has lost nothing.
      rows: what was measured.
    """

    router: str
    corpus: str
    spec: str
    part: str
    step: int
    calibrated_on: str
    calibration_tokens: int
    tokens: int
    sequences: int
    tokens_sha256: str
    languages: tuple[str, ...]
    layers_L: NDArray[np.int32]
    experts_L: NDArray[np.int32]
    whole: Cut
    rows: tuple[Cut, ...]


_WORDS = ("router", "corpus", "spec", "part", "calibrated_on", "tokens_sha256")
_COUNTS = ("step", "calibration_tokens", "tokens", "sequences")


def find_studies(root: str | os.PathLike[str]) -> list[StepFile]:
    """The studies of a run directory: by router's fate, corpus, step."""
    return find_steps(Path(root) / FOLDER)


def write_study(path: str | os.PathLike[str], study: Study) -> None:
    """Writes a study atomically; equal studies give equal bytes. NaN is null."""
    record: dict[str, Any] = {name: getattr(study, name) for name in (*_WORDS, *_COUNTS)}
    record["languages"] = list(study.languages)
    record |= {name: getattr(study, name).tolist() for name in ("layers_L", "experts_L")}
    record |= {"whole": _plain(study.whole), "rows": [_plain(row) for row in study.rows]}
    write_json(path, {"format_version": FORMAT_VERSION, **record})


def read_study(path: str | os.PathLike[str]) -> Study:
    """Reads a study. Strings are made visible and bounded; numbers that are none become NaN.

    Raises:
      ConfigError: one line: missing, too large, not JSON, of another version, or without the
        layers and rows of a study.
    """
    path = Path(path)
    record = read_record(path, FORMAT_VERSION)
    layers_L, experts_L = layers(path, record)
    rows = listed_rows(path, record, MAX_ROWS)
    names = record.get("languages")
    listed = names[:MAX_LANGUAGES] if isinstance(names, list) else []
    words: dict[str, Any] = {name: string(record.get(name)) for name in _WORDS}
    words |= {name: count(path, record, name) for name in _COUNTS}
    return Study(
        **words,
        languages=tuple(map(string, listed)),
        layers_L=layers_L,
        experts_L=experts_L,
        whole=_cut(path, "whole", record.get("whole"), len(layers_L)),
        rows=tuple(_cut(path, f"rows[{i}]", row, len(layers_L)) for i, row in enumerate(rows)),
    )


HEADER = (
    f"{'score':>10} {'of':>12} {'spread':>12} {'rate':>5} {'seed':>4}  {'experts':>7}  "
    f"{'params':>7}  {'FLOPs':>7}  {'ppl':>9}  {'95 %':>19}  {'change':>8}  {'95 %':>17}"
)
"""Of `line`: columns of a small table in fixed width."""


def line(cut: Cut) -> str:
    """A row of the table, all languages together. A dash: not known."""
    ppl = cut.perplexity()
    change = cut.change.get(ALL, Estimate(math.nan, math.nan, math.nan))
    seed = str(cut.seed) if cut.seed >= 0 else ""
    return (
        f"{text.clean(cut.score or 'whole', 10):>10} {text.clean(cut.of, 12):>12} "
        f"{text.clean(cut.spread, 12):>12} {cut.rate:>5.2f} {seed:>4}  {int(cut.kept_L.sum()):>7}  "
        f"{text.short(cut.parameters):>7}  {text.short(cut.flops_per_token):>7}  "
        f"{text.fixed(ppl.mean):>9}  {text.fixed(ppl.low) + ' ' + text.fixed(ppl.high):>19}  "
        f"{_signed(change.mean):>8}  {_signed(change.low) + ' ' + _signed(change.high):>17}"
    )


def _signed(value: float) -> str:
    return f"{value:+.4f}" if math.isfinite(value) else text.MISSING


def _plain(cut: Cut) -> dict[str, Any]:
    row = {field.name: getattr(cut, field.name) for field in dataclasses.fields(cut)}
    for name in ("flops_per_token", "tokens_per_second"):
        row[name] = row[name] if math.isfinite(row[name]) else None
    row["kept_L"] = cut.kept_L.tolist()
    for name in ("loss", "change"):
        row[name] = {language: numbers(found) for language, found in row[name].items()}
    return row


def _cut(path: Path, where: str, value: object, layers: int) -> Cut:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {where} is not an object")
    kept = value.get("kept_L")
    if (
        not isinstance(kept, list)
        or not len(kept) == layers <= MAX_LAYERS
        or not all(is_int(one) and 0 <= one < 1 << 31 for one in kept)
    ):
        raise ConfigError(f"{path}: {where}.kept_L does not have {layers} layers")
    seed = value.get("seed")
    return Cut(
        score=string(value.get("score")),
        of=string(value.get("of")),
        spread=string(value.get("spread")),
        rate=number(value.get("rate")),
        seed=seed if is_int(seed) and -1 <= seed < 1 << 31 else -1,
        kept_L=np.array(kept, np.int32),
        parameters=count(path, value, "parameters"),
        flops_per_token=number(value.get("flops_per_token")),
        tokens_per_second=number(value.get("tokens_per_second")),
        loss=_by_language(value.get("loss")),
        change=_by_language(value.get("change")),
    )


def _by_language(value: object) -> dict[str, Estimate]:
    if not isinstance(value, dict):
        return {}
    return {string(key): estimate(found) for key, found in list(value.items())[:MAX_LANGUAGES]}
