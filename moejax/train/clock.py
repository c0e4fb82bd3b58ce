"""The counters of a run that are not in the train state, saved with every checkpoint."""

from __future__ import annotations

import dataclasses
from typing import Any

from moejax.train.errors import StorageError

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Best:
    """The evaluation that a fine-tuning keeps, and how long nothing was better.

    Attributes:
      step: where it was.
      loss: its validation loss, nats per token.
      since: evaluations after it.
    """

    step: int
    loss: float
    since: int = 0

    def after(self, step: int, loss: float) -> Best:
        """The best of this one and another evaluation; of equals the earlier."""
        if loss < self.loss:
            return Best(step, loss)
        return dataclasses.replace(self, since=self.since + 1)


@dataclasses.dataclass
class Clock:
    """Where a run stands.

    Attributes:
      step: optimiser steps done; also the data position, because batch(step) is a pure function.
      tokens: training tokens consumed (padding not counted).
      flops: measured active training FLOPs so far.
      seconds: seconds spent in training steps over all attempts (no compile, eval, or saving).
      evaluated_step: newest step whose evaluation is complete on disk; -1 = none.
      metrics_lines: complete lines of metrics.jsonl at this point.
      best: of a run that keeps its best checkpoint (`FineTune.keep_best`), once it has evaluated.
    """

    step: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    evaluated_step: int = -1
    metrics_lines: int = 0
    best: Best | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; Python floats survive the round trip bit for bit."""
        fields = dataclasses.asdict(self)
        best = fields.pop("best")
        return {"format_version": FORMAT_VERSION, **fields, **({"best": best} if best else {})}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Clock:
        """Reads `to_json` back.

        Raises:
          StorageError: another format version, or keys missing.
        """
        fields = {field.name for field in dataclasses.fields(Clock)} - {"best"}
        if data.get("format_version") != FORMAT_VERSION or not fields <= set(data):
            raise StorageError(
                f"checkpoint clock has format version {data.get('format_version')!r} and keys "
                f"{sorted(data)}; this moejax reads version {FORMAT_VERSION}"
            )
        best = Best(**data["best"]) if data.get("best") else None
        return Clock(**{name: data[name] for name in fields}, best=best)
