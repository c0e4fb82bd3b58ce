"""A run opened to write and to score texts: its checkpoint, its tokenizer, its longest text."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from moejax.config import ConfigError, read_json
from moejax.data import Tokenizer
from moejax.data.tokenizer import state_hash
from moejax.models import Transformer
from moejax.models.decoding import require_decodable, without_capacity
from moejax.probe.generation import Generator
from moejax.probe.opened import OpenedRun, Say, open_run
from moejax.probe.scoring import Scorer
from moejax.train.rundir import check_format

Tree = dict[str, Any]
WITHOUT_TEXT = ("bytes", "pretrained")
"""Tokenizers that are known without the text that the run was trained on."""


@dataclasses.dataclass(frozen=True)
class Writer:
    """A checkpoint ready to write and to score.

    Attributes:
      run: where it came from.
      step: of the checkpoint.
      model: of the run; without bounds on experts where they were lifted.
      params, router_state: of the checkpoint.
      tokenizer: of the run.
    """

    run: OpenedRun
    step: int
    model: Transformer
    params: Tree
    router_state: Tree
    tokenizer: Tokenizer

    @property
    def trained_length(self) -> int:
        """Tokens of the windows that the run was trained on; of an imported model, which was
        trained elsewhere, the longest that its config allows."""
        longest = self.model.config.max_seq_len
        if (self.run.root / "huggingface").is_dir():
            return longest
        return min(self.run.experiment.data.seq_len, longest)

    def ids(self, text: str) -> tuple[int, ...]:
        """Ids of a text; an empty one is the end of another document."""
        return tuple(map(int, self.tokenizer.encode(text))) or (self.tokenizer.eos_id,)

    def generator(self, batch_size: int = 8) -> Generator:
        """What writes texts with this checkpoint."""
        return Generator(
            self.model,
            self.params,
            self.router_state,
            token_bytes=self.tokenizer.token_bytes,
            pad_id=self.tokenizer.pad_id,
            batch_size=batch_size,
        )

    def scorer(self, batch_size: int = 8, max_length: int = 0) -> Scorer:
        """What scores texts with this checkpoint."""
        return Scorer(
            self.model,
            self.params,
            self.router_state,
            batch_size=batch_size,
            max_length=max_length,
            pad_id=self.tokenizer.pad_id,
        )


def open_writer(
    root: str | os.PathLike[str],
    *,
    step: int | None = None,
    lift_capacity: bool = False,
    say: Say = print,
) -> Writer:
    """Opens a run directory on one device.

    Args:
      root: the run directory.
      step: which checkpoint; None: the newest whole one.
      lift_capacity: no expert turns a token away, whatever the config says.
      say: is told of damaged checkpoints.

    Raises:
      ConfigError: no such run or checkpoint; its routing depends on the batch; or its tokenizer is
        not to be had.
      StorageError: the checkpoint is damaged.
    """
    run = open_run(root)
    config = run.experiment.model
    if lift_capacity:
        config = without_capacity(config)
    require_decodable(config)
    tokenizer = run_tokenizer(run)
    restored = run.restore(step, say)
    model = run.model if config == run.experiment.model else Transformer(config)
    return Writer(run, restored.step, model, restored.params, restored.router_state, tokenizer)


def run_tokenizer(run: OpenedRun) -> Tokenizer:
    """The tokenizer that the run was trained with; without its text where it does not need it.

    Raises:
      ConfigError: it is another one today, or not to be had.
    """
    data = run.experiment.data
    if data.tokenizer not in WITHOUT_TEXT:
        return run.dataset.tokenizer
    path = run.root / "data.json"
    recorded = read_json(path)
    check_format(path, recorded)
    tokenizer = data.recipe().train(list)
    here = state_hash(tokenizer.state())
    if recorded.get("tokenizer_hash") != here:
        raise ConfigError(
            f"{path}: the run was trained with another tokenizer: tokenizer_hash is "
            f"{str(recorded.get('tokenizer_hash'))[:12]!r} there, and {here[:12]!r} of what "
            f"config.data.tokenizer={data.tokenizer!r} gives here"
        )
    return tokenizer
