"""How much a model loses with the experts it is pruned of: frequency against random and magnitude.

The text is divided in two by documents (by units, where languages say the same): activation
frequencies are counted on one half, and losses measured on the other.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moejax.analysis.clusters import clustered_mean
from moejax.analysis.pruning import (
    ALL,
    FOLDER,
    FREQUENCY,
    HEADER,
    MAGNITUDE,
    RANDOM,
    Cut,
    Study,
    line,
    write_study,
)
from moejax.analysis.traces import Trace
from moejax.config import ConfigError, counts, nearest
from moejax.models import ModelConfig, Transformer
from moejax.models.metrics import moe_layers
from moejax.probe.corpus import Text
from moejax.probe.interventions.program import make_losses
from moejax.probe.interventions.sweep import Evaluator
from moejax.probe.observe import observer
from moejax.probe.opened import OpenedRun, Restored, Say
from moejax.probe.program import make_pass
from moejax.probe.rows import LabelledRows
from moejax.probe.tracing import TraceOptions, open_rows, trace
from moejax.surgery import pruning
from moejax.surgery.closed import can_close, closed
from moejax.surgery.halves import halves
from moejax.surgery.ranking import (
    PROPORTIONAL,
    SPREADS,
    UNIFORM,
    Bools,
    activation_frequency,
    keep_mask,
    random_mask,
)

SCORES = (FREQUENCY, RANDOM, MAGNITUDE)
POOLED, EACH = "pooled", "each"
Ints = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
      rates: shares of the experts that go.
      scores: of `SCORES`.
      spreads: of `ranking.SPREADS`; magnitude and `proportional` do not go together.
      by: `pooled`: frequencies of all languages together. `each`: also those of every language
        alone, each under which all languages are measured; a language under its own frequencies is
        sparse activation guided by them.
      seeds: draws of random, each with the counts per layer of the pooled frequencies.
      router: of `pruning.ROUTERS_AFTER`.
      least: experts that a layer keeps at least.
      timed: also remove the experts, and time the model that is left (pooled frequencies).
      slots: of a token's experts so many, best first, count for frequencies; 0: all.
    """

    rates: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    scores: tuple[str, ...] = SCORES
    spreads: tuple[str, ...] = (UNIFORM, "global")
    by: str = POOLED
    seeds: int = 5
    router: str = pruning.REMOVE
    least: int = 1
    timed: bool = False
    slots: int = 0

    def check(self, model: ModelConfig) -> None:
        """Raises ConfigError for a plan that is none, or not for this model."""
        for name, values, known in (
            ("scores", self.scores, SCORES),
            ("spreads", self.spreads, tuple(SPREADS)),
            ("by", (self.by,), (POOLED, EACH)),
            ("router", (self.router,), tuple(pruning.ROUTERS_AFTER)),
        ):
            for value in values:
                if value not in known:
                    hint = nearest(value, known)
                    raise ConfigError(f"--{name}={value!r}: one of {', '.join(known)}{hint}")
        if not self.rates or not self.scores or not self.spreads:
            raise ConfigError("--rates, --scores and --spreads: at least one of each")
        if self.seeds < 1:
            raise ConfigError(f"--seeds={self.seeds}: nearest valid value 1")
        for rate in self.rates:
            keep_mask(np.zeros((1, 2)), rate, UNIFORM, self.least)
        # Whether the routers can choose among fewer experts: before anything is read.
        whole = {
            layer: range(moe.experts) for layer, moe in enumerate(model.plan()) if moe is not None
        }
        if not whole:
            raise ConfigError("the model has no MoE layer; nearest valid a run with model.moe")
        fewer = {layer: range(max(len(experts) - 1, 1)) for layer, experts in whole.items()}
        pruning.pruned_config(model, fewer, self.router)


@dataclasses.dataclass(frozen=True)
class _Case:
    score: str
    of: str
    spread: str
    rate: float
    seed: int
    keep_LE: Bools


@dataclasses.dataclass(frozen=True)
class _Sums:
    """Of one pass: nats by sequence, hidden units per token by MoE layer, tokens per second."""

    nll_S: NDArray[np.float64]
    width_L: NDArray[np.float64]
    speed: float


class Bench:
    """The text of a study, its whole model, and what any choice of experts costs on it."""

    def __init__(self, run: OpenedRun, restored: Restored, rows: LabelledRows, plan: Plan) -> None:
        self.run, self.restored, self.rows, self.plan = run, restored, rows, plan
        self.halves = halves(rows)
        self.evaluator = Evaluator(run, rows, make_losses(run.model))
        self.layers = moe_layers(run.model)
        kinds = run.experiment.model.plan()
        self.moes = [kind for kind in kinds if kind is not None]
        self.scored_S = np.where(self.halves.calibrate_S, 0.0, self.evaluator.count_S)
        if not self.scored_S.any() or not self.halves.calibrate_S.any():
            raise ConfigError("--tokens: too few documents to count on some and measure on others")
        self.whole: _Sums | None = None

    def kept(self, keep_LE: Bools) -> dict[int, NDArray[np.bool_]]:
        """bool `[experts]` by number of the layer."""
        return {
            layer: keep_LE[row, : moe.experts]
            for row, (layer, moe) in enumerate(zip(self.layers, self.moes, strict=True))
        }

    def numbers(self, keep_LE: Bools) -> dict[int, list[int]]:
        """The experts by number of the layer."""
        return {layer: np.flatnonzero(own).tolist() for layer, own in self.kept(keep_LE).items()}

    def everything(self) -> Bools:
        """The mask that keeps all FFN experts."""
        most = max(moe.experts for moe in self.moes)
        return np.array([[e < moe.experts for e in range(most)] for moe in self.moes])

    def prunable(self, trace: Trace, where_T: Bools) -> NDArray[np.float64]:
        """Frequencies of the FFN experts; those that compute nothing are not there."""
        everything = self.everything()
        found = activation_frequency(trace, where_T)[:, : everything.shape[1]]
        return np.where(everything, found, np.nan)

    def forced_off(self, keep_LE: Bools) -> _Sums:
        """The whole model with the other experts off; or the model without them, if the routers'
        rules are not known here."""
        if not can_close(self.run.model, self.plan.router):
            return self.removed(keep_LE, twice=False)
        edits = closed(self.run.model, self.kept(keep_LE), self.plan.router)
        nll_S, _, width_L = self.evaluator(self.restored, edits)
        return _Sums(nll_S, width_L, np.nan)

    def removed(self, keep_LE: Bools, twice: bool = True) -> _Sums:
        """The model that has lost the other experts; the second pass is timed."""
        kept = self.numbers(keep_LE)
        tree = {"params": self.restored.params, "router_state": self.restored.router_state}
        config, made = pruning.prune(self.run.experiment.model, tree, kept, self.plan.router)
        model = Transformer(config)
        experiment = dataclasses.replace(self.run.experiment, model=config)
        run = dataclasses.replace(self.run, experiment=experiment, model=model)
        evaluator = Evaluator(run, self.rows, make_losses(model))
        restored = Restored(self.restored.step, made["params"], made["router_state"])
        nll_S, _, width_L = evaluator(restored, None)
        speed = self._speed(lambda: evaluator(restored, None)) if twice else np.nan
        return _Sums(nll_S, width_L, speed)

    def _speed(self, again: Callable[[], Any]) -> float:
        start = time.perf_counter()
        again()
        tokens = sum(int((batch["segment_ids"] > 0).sum()) for batch in self.rows.batches)
        return tokens / (time.perf_counter() - start)

    def cut(self, case: _Case, sums: _Sums) -> Cut:
        """The row of a case."""
        kept = {
            layer: np.flatnonzero(own).tolist() for layer, own in self.kept(case.keep_LE).items()
        }
        experiment = self.run.experiment
        config = pruning.pruned_config(experiment.model, kept, self.plan.router)
        shape = config.shape()
        whole = self.whole or sums
        loss, change = {}, {}
        for language, here_S in self._languages():
            count_S = np.where(here_S, self.scored_S, 0.0)
            loss[language] = clustered_mean(sums.nll_S, count_S)
            change[language] = clustered_mean(sums.nll_S - whole.nll_S, count_S)
        return Cut(
            score=case.score,
            of=case.of,
            spread=case.spread,
            rate=case.rate,
            seed=case.seed,
            kept_L=np.array([len(own) for own in kept.values()], np.int32),
            parameters=counts.parameters(shape).total,
            flops_per_token=counts.flops_per_token(
                shape, experiment.data.seq_len, tuple(sums.width_L.tolist())
            ),
            tokens_per_second=sums.speed,
            loss=loss,
            change=change,
        )

    def _languages(self) -> Iterator[tuple[str, Bools]]:
        yield ALL, np.ones(len(self.scored_S), bool)
        for index in self.languages():
            yield self.rows.languages[index], self.halves.language_S == index

    def languages(self) -> list[int]:
        """Those of which there is something to measure."""
        there = np.unique(self.halves.language_S[self.scored_S > 0])
        return [int(index) for index in there]


def cases(bench: Bench, traced: Trace) -> Iterator[_Case]:
    """What is measured, in the order of the table."""
    plan, halves_ = bench.plan, bench.halves
    assert traced.sequence_T is not None
    calibrate_T = halves_.calibrate_S[traced.sequence_T]
    language_T = halves_.language_S[traced.sequence_T]
    pooled = bench.prunable(traced, calibrate_T)
    of = {ALL: pooled}
    for index in bench.languages() if plan.by == EACH else ():
        own = bench.prunable(traced, calibrate_T & (language_T == index))
        if not np.isnan(own).all():
            of[bench.rows.languages[index]] = own
    tree = {"params": bench.restored.params, "router_state": bench.restored.router_state}
    for rate in plan.rates:
        for spread in plan.spreads:
            like = keep_mask(pooled, rate, spread, plan.least)
            if FREQUENCY in plan.scores:
                for language, score in of.items():
                    keep = keep_mask(score, rate, spread, plan.least)
                    yield _Case(FREQUENCY, language, spread, rate, -1, keep)
            for seed in range(plan.seeds if RANDOM in plan.scores else 0):
                drawn = random_mask(like, ~np.isnan(pooled), seed)
                yield _Case(RANDOM, ALL, spread, rate, seed, drawn)
            if MAGNITUDE in plan.scores and spread != PROPORTIONAL:
                score = pruning.magnitude(bench.run.experiment.model, tree)
                keep = keep_mask(score, rate, spread, plan.least)
                yield _Case(MAGNITUDE, ALL, spread, rate, -1, keep)


def study(bench: Bench, text: Text, say: Say = print) -> Study:
    """Measures the whole model, then every case.

    Raises:
      RuntimeError: removing experts is not what forcing them off is: a bug, not a finding.
    """
    run, restored, rows, plan = bench.run, bench.restored, bench.rows, bench.plan
    forward = make_pass(run.model, observer(probs=False))
    traced = trace(run, restored, rows, forward, plan.slots)
    assert traced.sequence_T is not None
    everything = bench.everything()
    nothing = _Case("", ALL, "", 0.0, -1, everything)
    bench.whole = bench.removed(everything) if plan.timed else bench.forced_off(everything)
    say(HEADER)
    whole = bench.cut(nothing, bench.whole)
    say(line(whole))
    found = []
    for case in cases(bench, traced):
        sums = bench.forced_off(case.keep_LE)
        if plan.timed and case.score == FREQUENCY and case.of == ALL:
            sums = _same(sums, bench.removed(case.keep_LE), bench.evaluator.count_S)
        found.append(bench.cut(case, sums))
        say(line(found[-1]))
    return Study(
        router=plan.router,
        corpus=text.name,
        spec=text.spec,
        part=text.part,
        step=restored.step,
        calibrated_on="every second document of the text; the others are scored"
        + (f"; of a token's experts the first {plan.slots} count" if plan.slots else ""),
        calibration_tokens=int(bench.halves.calibrate_S[traced.sequence_T].sum()),
        tokens=int(bench.scored_S.sum()),
        sequences=int((bench.scored_S > 0).sum()),
        tokens_sha256=bench.evaluator.tokens_sha256,
        languages=tuple(rows.languages[index] for index in bench.languages()),
        layers_L=np.array(bench.layers, np.int32),
        experts_L=np.array([moe.experts for moe in bench.moes], np.int32),
        whole=whole,
        rows=tuple(found),
    )


def _same(off: _Sums, gone: _Sums, count_S: NDArray[np.float64]) -> _Sums:
    """What removal gave, after making sure that it is what forcing off gave."""
    apart = np.abs(off.nll_S - gone.nll_S).sum() / count_S.sum()
    if not apart < 1e-2:
        raise RuntimeError(
            f"without the experts losses are {apart:.3g} nats per token from those with them off"
        )
    return gone


def write_study_of(
    run: OpenedRun,
    text: Text,
    step: int | None,
    plan: Plan,
    tokens: int = 65536,
    out: Path | None = None,
    say: Say = print,
) -> Path:
    """Studies a checkpoint and writes `pruning/ROUTER/CORPUS/STEP.json` of the run.

    Args:
      step: of the checkpoint; None: the newest whole one.
      tokens: of the text, at most; half of them are scored.
      out: the folder; default: in the run.
      say: told of each row and file, and of damaged checkpoints.

    Raises:
      ConfigError: no such checkpoint or text, or a plan that means nothing for this model.
      StorageError: the checkpoint that was asked for is damaged.
    """
    options = TraceOptions(tokens=tokens, slots=plan.slots)
    options.check(run)
    plan.check(run.experiment.model)
    restored = run.restore(step, say)
    bench = Bench(run, restored, open_rows(run, text, options), plan)
    made = study(bench, text, say)
    folder = run.root / FOLDER / plan.router / text.name if out is None else out
    path = folder / f"{made.step}.json"
    write_study(path, made)
    say(f"{path}: {made.tokens:,} tokens scored in {made.sequences:,} sequences")
    return path


def parse_rates(words: Sequence[str]) -> tuple[float, ...]:
    """Rates as shares (0.3) or percent (30%).

    Raises:
      ConfigError: one that is none.
    """
    found = []
    for word in words:
        try:
            value = float(word.removesuffix("%")) / (100 if word.endswith("%") else 1)
        except ValueError:
            raise ConfigError(
                f"--rates: {word[:20]!r} is no share; nearest valid e.g. --rates=10%,30%,50%"
            ) from None
        found.append(value)
    return tuple(dict.fromkeys(found))
