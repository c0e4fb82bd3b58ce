"""Scores of a run on a task: `RUN/tasks/TASK.json`, read without trust (docs/tasks.md).

`python -m tools.task score` writes them, for fine-tuned runs and for the bases they start from.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from moejax.analysis.finetuning.paired import Losses
from moejax.analysis.records import (
    Estimate,
    count,
    estimate,
    is_int,
    number,
    read_record,
    string,
)
from moejax.config.knobs import ConfigError

FORMAT_VERSION = 1
FOLDER = "tasks"
MAX_DOCUMENTS = 1 << 18


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """A checkpoint on one split of one task, and on the general text that it should not forget.

    Attributes:
      path: the file.
      step: of the checkpoint.
      params_hash: of the parameters that were scored; "": not known.
      base_hash: what the run's parameters started from, of a base what they are; "": not known.
      task, task_hash, split: the text; equal hashes and splits are the same examples.
      examples, documents: how many.
      answer_loss: nats per answer token.
      answer_accuracy: share of answer tokens that are the most likely one.
      exact_match: share of answers generated to the letter; NaN: none was generated.
      general_loss: nats per token of the general text.
      general_hash: of that text.
      answer, general: the losses by document.
    """

    path: Path
    step: int
    params_hash: str
    base_hash: str
    task: str
    task_hash: str
    split: str
    examples: int
    documents: int
    answer_loss: Estimate
    answer_accuracy: float
    exact_match: float
    general_loss: Estimate
    general_hash: str
    answer: Losses
    general: Losses

    @property
    def answers_id(self) -> tuple[str, str]:
        """Equal where the answers are the same: what may be paired."""
        return self.task_hash, self.split


def find_scores(root: str | os.PathLike[str]) -> list[Path]:
    """The files of scores of a run directory, by name."""
    top = Path(root) / FOLDER
    if not top.is_dir():
        return []
    return [top / name for name in sorted(os.listdir(top)) if name.endswith(".json")]


def read_score(path: str | os.PathLike[str]) -> Score:
    """Reads a file of scores.

    Raises:
      ConfigError: one line: missing, too large, not JSON, of another version, or without the
        counts and documents of a score.
    """
    path = Path(path)
    record = read_record(path, FORMAT_VERSION)
    return Score(
        path=path,
        step=count(path, record, "step"),
        params_hash=string(record.get("params_hash")),
        base_hash=string(record.get("base_hash")),
        task=string(record.get("task")),
        task_hash=string(record.get("task_hash")),
        split=string(record.get("split")),
        examples=count(path, record, "examples"),
        documents=count(path, record, "documents"),
        answer_loss=estimate(record.get("answer_loss")),
        answer_accuracy=number(record.get("answer_accuracy")),
        exact_match=number(record.get("exact_match")),
        general_loss=estimate(record.get("general_loss")),
        general_hash=string(record.get("general_text_hash")),
        answer=_losses(path, record, "answer_documents"),
        general=_losses(path, record, "general_documents"),
    )


def _losses(path: Path, record: dict[str, Any], name: str) -> Losses:
    """`[{id, tokens, loss}]`: the mean of a document in nats per scored token."""
    listed = record.get(name)
    if not isinstance(listed, list) or len(listed) > MAX_DOCUMENTS:
        raise ConfigError(f"{path}: {name} is no list of at most {MAX_DOCUMENTS:,} documents")
    names, sums, counts = [], [], []
    for i, one in enumerate(listed):
        own = one if isinstance(one, dict) else {}
        tokens, loss = own.get("tokens"), number(own.get("loss"))
        if not is_int(tokens) or not 0 <= tokens < 1 << 53 or not np.isfinite(loss):
            raise ConfigError(f"{path}: {name}[{i}] has no tokens and loss")
        names.append(string(str(own.get("id", ""))))
        sums.append(loss * tokens)
        counts.append(tokens)
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: {name} has a document twice")
    return Losses(tuple(names), np.array(sums, np.float64), np.array(counts, np.float64))
