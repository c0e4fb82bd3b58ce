"""One row of the table of runs: every number with its unit, its source and its fall-back."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from moejax.analysis import metrics as m
from moejax.analysis.routing import load
from moejax.analysis.runs import CAUSES, Run

NAN = math.nan


@dataclasses.dataclass(frozen=True)
class Summary:
    """Numbers of one run; NaN (or "") where the run directory does not tell.

    Losses are nats per token of validation text, widths hidden units, times seconds, compute is
    training FLOPs (forward and backward). `measured_*` come from the experts that tokens used.
    """

    state: str
    kind: str
    steps: float
    total_steps: float
    tokens: float
    total_parameters: float
    nominal_active: float
    measured_active: float
    loss: float
    perplexity: float
    bits_per_byte: float
    below_unigram: float
    load_max_over_mean: float
    load_worst: float
    load_worst_layer: float
    load_cv: float
    dead_experts: float
    experts: float
    drop_fraction: float
    drop_causes: str
    active_experts: float
    nominal_active_experts: float
    active_width: float
    flops: float
    flops_per_token: float
    tokens_per_second: float
    elapsed: float

    @property
    def moe(self) -> bool:
        """Whether any layer has routed experts."""
        return self.experts > 0


def summarise(run: Run) -> Summary:
    """Measures one loaded run."""
    evals, final = run.metrics.eval, run.final
    loss = _first(final.number("eval", "loss"), evals.last("eval/loss"))
    steps = _first(
        final.number("step"),
        _latest(run, "step"),
        run.status.number("step"),
    )
    tokens = _first(final.number("tokens"), _latest(run, "tokens"))
    flops = _first(final.number("compute", "flops"), _latest(run, "compute/flops"))
    bytes_per_token = run.data.number("bytes_per_token", "validation")
    return Summary(
        state=run.state,
        kind=kind(run),
        steps=steps,
        total_steps=run.status.number("total_steps"),
        tokens=tokens,
        total_parameters=run.model.number("total_parameters"),
        nominal_active=run.model.number("active_parameters"),
        measured_active=final.number("measured", "active_parameters"),
        loss=loss,
        perplexity=m.perplexity(loss),
        bits_per_byte=_first(
            final.number("eval", "bits_per_byte"),
            evals.last("eval/bits_per_byte"),
            m.bits_per_byte(loss, bytes_per_token),
        ),
        below_unigram=m.reduction(loss, run.data.number("baselines", "unigram")),
        flops=flops,
        flops_per_token=_first(
            final.number("measured", "flops_per_token"), flops / tokens if tokens else NAN
        ),
        tokens_per_second=speed(run),
        elapsed=_first(final.number("time", "elapsed"), _latest(run, "time/elapsed")),
        **_load(run),
    )


def kind(run: Run) -> str:
    """The routers of a model in words: `dense`, `top_k`, `top_p, 4 widths`."""
    layers = run.model.records("layers")
    if not layers:
        return ""
    words: dict[str, None] = {}
    for layer in layers:
        router = layer.string("router") or layer.string("kind")
        widths = layer.get("widths")
        if layer.string("kind") == "moe" and isinstance(widths, list):
            different = len({w for w in widths if isinstance(w, int | float)})
            router += f", {different} widths" if different > 1 else ""
        words.setdefault(router)
    if len(words) > 1:
        words.pop("dense", None)
    return " + ".join(words)


def _load(run: Run) -> dict[str, Any]:
    """Routing health: from the newest routing file, else from the newest eval row."""
    layers = run.model.records("layers")
    moe_layers = [layer for layer in layers if layer.string("kind") == "moe"]
    experts = float(np.nansum([layer.number("experts") for layer in moe_layers]))
    nominal = [layer.number("nominal_active_experts") for layer in moe_layers]
    last = run.metrics.eval.last
    values: dict[str, Any] = {
        "experts": experts,
        "nominal_active_experts": _mean(nominal),
        "load_max_over_mean": last("eval/routing/load_max_over_mean"),
        "load_worst": NAN,
        "load_worst_layer": NAN,
        "load_cv": last("eval/routing/load_cv"),
        "dead_experts": last("eval/routing/dead_fraction") * experts if experts else NAN,
        "drop_fraction": NAN,
        "drop_causes": "",
        "active_experts": _first(
            run.final.number("measured", "active_experts"), last("eval/routing/active_experts")
        ),
        "active_width": _first(
            run.final.number("measured", "active_width"), last("eval/routing/active_width")
        ),
    }
    routing = run.routing
    if routing is None or not len(routing.layers_L):
        if not experts:
            values["active_experts"] = values["active_width"] = NAN
        return values
    exists = routing.exists_LE
    worst = load.load_max_over_mean(routing.count_LE, exists)
    values["experts"] = float(exists.sum())
    values["dead_experts"] = float(load.dead_experts(routing.count_LE, exists).sum())
    values["load_cv"] = _mean(load.load_cv(routing.count_LE, exists))
    values["load_max_over_mean"] = _mean(worst)
    if np.isfinite(worst).any():
        layer = int(np.nanargmax(worst))
        values["load_worst"] = float(worst[layer])
        values["load_worst_layer"] = float(routing.layers_L[layer])
    requested = routing.requested_L.sum()
    values["drop_fraction"] = float(load.drop_fraction(requested, routing.kept_L.sum()))
    values["drop_causes"] = ", ".join(
        f"{cause} {int(total):,}"
        for cause in CAUSES
        if cause in routing.dropped and (total := routing.dropped[cause].sum()) > 0
    )
    if math.isnan(values["active_experts"]):
        values["active_experts"] = _mean(routing.active_L)
    if math.isnan(values["active_width"]):
        values["active_width"] = _mean(routing.active_width_L)
    return values


def speed(run: Run) -> float:
    """Median tokens per second of the train rows; the first has the compilation in it."""
    rates = run.metrics.train["perf/tokens_per_second"]
    rates = rates[np.isfinite(rates)]
    rates = rates[1:] if rates.size > 1 else rates
    return float(np.median(rates)) if rates.size else NAN


def _latest(run: Run, key: str) -> float:
    values = [run.metrics.train.last(key), run.metrics.eval.last(key)]
    return max((v for v in values if math.isfinite(v)), default=NAN)


def _first(*values: float) -> float:
    return next((v for v in values if math.isfinite(v)), NAN)


def _mean(values: object) -> float:
    array = np.asarray(values, np.float64)
    array = array[np.isfinite(array)]
    return float(array.mean()) if array.size else NAN
