"""The counters of a run that are not in the train state, saved with every checkpoint."""

from __future__ import annotations

import dataclasses
from typing import Any

from moejax.train.errors import StorageError

FORMAT_VERSION = 1


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
    """

    step: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    evaluated_step: int = -1
    metrics_lines: int = 0

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; Python floats survive the round trip bit for bit."""
        return {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Clock:
        """Reads `to_json` back.

        Raises:
          StorageError: another format version, or keys missing.
        """
        fields = {field.name for field in dataclasses.fields(Clock)}
        if data.get("format_version") != FORMAT_VERSION or not fields <= set(data):
            raise StorageError(
                f"checkpoint clock has format version {data.get('format_version')!r} and keys "
                f"{sorted(data)}; this moejax reads version {FORMAT_VERSION}"
            )
        return Clock(**{name: data[name] for name in fields})
