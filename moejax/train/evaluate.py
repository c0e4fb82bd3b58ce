"""Evaluation: validation loss, routing counts and the evaluation trace of one step."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from moejax.config.knobs import knob
from moejax.sharding import Rows
from moejax.train.flops import FlopsMeter
from moejax.train.state import TrainState
from moejax.train.step import model_inputs
from moejax.train.tuning import Tuning, parts
from moejax.train.votes import Votes

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """When the validation text is read, and how much of it. There is always one at the end."""

    every: int | str = knob("10%", unit="steps | tokens | percent", doc="an evaluation every")
    at_start: bool = knob(False, doc="also evaluate the initial weights")
    batch_size: int = knob(16, unit="sequences", doc="sequences per evaluation batch", low=1)
    max_tokens: int = knob(
        65536, unit="tokens", doc="validation tokens read at most, always the same ones", low=1
    )
    trace_tokens: int = knob(
        16384,
        unit="tokens",
        doc="tokens kept in trace/STEP.npz, in rows from all over the text; 0 = no trace",
        low=0,
    )

    def traced_rows(self, seq_len: int) -> int:
        """Most rows of a batch that are traced."""
        return min(self.batch_size, _whole_rows(self.trace_tokens, seq_len))


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
      metrics: `eval/...` scalars for metrics.jsonl and final.json.
      routing, trace: arrays of routing/STEP.npz and trace/STEP.npz.
      active_width_L: routed hidden units per token of each MoE layer.
      active_experts: mean over MoE layers of routed experts per token; NaN for a dense model.
      seconds: wall-clock seconds it took.
    """

    metrics: dict[str, float]
    routing: Arrays
    trace: Arrays | None
    active_width_L: np.ndarray
    active_experts: float
    seconds: float


class Evaluator:
    """Runs the compiled evaluation step over the validation stream."""

    def __init__(
        self,
        model: Any,
        step: Callable[..., Any],
        batches: Callable[[], Iterable[dict[str, np.ndarray]]],
        num_rows: int,
        rows: Rows,
        config: EvaluationConfig,
        bytes_per_token: float,
        tuning: Tuning | None = None,
    ) -> None:
        self._model = model
        self._step = step
        self._batches = batches
        self._num_rows = num_rows
        self._rows = rows
        self._config = config
        self._bytes_per_token = bytes_per_token
        self._tuning = tuning

    def run(self, state: TrainState, stop: Votes) -> Evaluation | None:
        """Evaluates; None if a signal asked for a stop meanwhile (nothing is to be logged then;
        several processes stop at their next step instead).

        Raises:
          ValueError: the validation stream holds no target.
        """
        start = time.perf_counter()
        params = parts(self._tuning, state)
        sums: Any = None
        traces: list[Arrays] = []
        tokens = row = 0
        for batch in self._batches():
            if stop.requested:
                return None
            tokens += int(np.count_nonzero(batch["segment_ids"]))
            inputs = self._rows.put_whole(model_inputs(batch))
            rows_N, kept = self._traced(batch, row)
            row += len(batch["segment_ids"])
            out = dict(self._step(params, state.router_state, inputs, rows_N))
            trace = out.pop("trace", None)
            if trace is not None and kept is not None:
                traces.append(self._model.host_trace(jax.device_get(trace), kept))
            # float64 on the host: the sum must not depend on how many batches there are.
            host = jax.tree.map(_wide, jax.device_get(out))
            sums = host if sums is None else jax.tree.map(np.add, sums, host)
        if sums is None or not sums["targets"] > 0:
            raise ValueError("the validation split holds no target token to evaluate on")
        summary = jax.device_get(dict(self._model.summarise(sums)))
        routing = dict(self._model.host_routing(summary))
        routing |= {"split": np.asarray("eval"), "tokens": np.asarray(tokens, np.int64)}
        active_width_L = np.asarray(routing["active_width_L"], np.float64)
        return Evaluation(
            metrics=self._metrics(sums, summary),
            routing=routing,
            trace=_join(traces, self._config.trace_tokens) if traces else None,
            active_width_L=active_width_L,
            active_experts=float(np.mean(routing["active_L"])) if active_width_L.size else math.nan,
            seconds=time.perf_counter() - start,
        )

    def _traced(
        self, batch: dict[str, np.ndarray], row: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray] | None]:
        """Which rows of the batch are traced, int32 `[N]`, and these rows; None if none is.

        The batch's first row is number `row` of the stream; rows past the last are padding.
        """
        rows, length = batch["segment_ids"].shape
        chosen_R = traced_rows(self._num_rows, length, self._config.trace_tokens)[row : row + rows]
        found = np.flatnonzero(chosen_R)
        rows_N = np.zeros(self._config.traced_rows(length), np.int32)
        rows_N[: len(found)] = found
        if not len(found):
            return rows_N, None
        kept = {name: array[rows_N] for name, array in batch.items()}
        kept["segment_ids"][len(found) :] = 0
        return rows_N, kept

    def _metrics(self, sums: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, float]:
        loss = float(sums["nll"]) / float(sums["targets"])
        metrics = {
            "eval/loss": loss,
            "eval/perplexity": math.exp(loss) if loss < 700 else math.inf,
            "eval/bits_per_byte": loss / math.log(2.0) / self._bytes_per_token,
            "eval/tokens": int(sums["targets"]),
        }
        for key in sorted(summary):
            if key.startswith("routing/"):
                metrics[f"eval/{key}"] = float(summary[key])
        return metrics


def measured(meter: FlopsMeter, evaluation: Evaluation) -> dict[str, float | None]:
    """What a token really used during an evaluation: the `measured` part of final.json."""
    active, non_embedding = meter.active(evaluation.active_width_L)
    experts = evaluation.active_experts
    widths = evaluation.active_width_L
    return {
        "active_parameters": active,
        "active_non_embedding_parameters": non_embedding,
        "flops_per_token": meter.per_token(widths),
        "active_experts": experts if math.isfinite(experts) else None,
        "active_width": float(widths.mean()) if widths.size else None,
    }


def _wide(leaf: Any) -> Any:
    array = np.asarray(leaf)
    kind = np.float64 if np.issubdtype(array.dtype, np.floating) else np.int64
    return array.astype(kind)


def traced_rows(num_rows: int, row_tokens: int, limit: int) -> np.ndarray:
    """bool `[R]`: whole rows at equal distances, because the first rows alone would be one domain.

    As many as `limit` tokens hold, but at least one if `limit > 0`.
    """
    count = min(num_rows, _whole_rows(limit, row_tokens))
    chosen_R = np.zeros(num_rows, bool)
    chosen_R[np.arange(count) * num_rows // max(1, count)] = True
    return chosen_R


def _whole_rows(limit: int, row_tokens: int) -> int:
    """Rows that `limit` tokens hold, but one if they hold less than one."""
    return max(1, limit // row_tokens) if limit else 0


def _join(traces: list[Arrays], limit: int) -> Arrays:
    """Concatenates along the token axis, which the names mark with a T; other arrays are equal."""
    joined = {}
    for name, first in traces[0].items():
        letters = name.rpartition("_")[2]
        if "T" not in letters or not letters.isupper():
            joined[name] = first
            continue
        axis = letters.index("T")
        whole = np.concatenate([piece[name] for piece in traces], axis)
        joined[name] = np.take(whole, np.arange(min(limit, whole.shape[axis])), axis)
    return joined
