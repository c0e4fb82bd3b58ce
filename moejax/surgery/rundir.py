"""From a run directory to another one: what every surgery reads and writes.

The new run is one before its first step (`moejax.train.newrun`, state `converted`), with
`surgery.json` beside: what was done, to which checkpoint of which run, the counts before and after.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from moejax.config import ConfigError, override, write_bytes_atomic, write_json
from moejax.data import DataConfig, TrainStream
from moejax.interop.rundir import BESIDE
from moejax.interop.source import CARRIED
from moejax.models import ModelConfig, Transformer
from moejax.models.block import Tokens
from moejax.probe.corpus import open_text
from moejax.probe.opened import OpenedRun
from moejax.probe.rows import validation_rows
from moejax.probe.tracing import TraceOptions, open_rows
from moejax.surgery.activations import Batch, tokens_of
from moejax.surgery.layers import Tree
from moejax.train import Experiment
from moejax.train.newrun import fill, new_run

SURGERY = "surgery.json"
ARRAYS = "surgery.npz"
FORMAT_VERSION = 1
TRAIN = "train"
"""The text that a run is trained on, as a calibration text."""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Two models on the same tokens.

    Attributes:
      tokens: how many.
      loss_before, loss_after: nats per token.
      largest: the largest absolute difference of a logit.
    """

    tokens: int
    loss_before: float
    loss_after: float
    largest: float


def counts(model: ModelConfig, seq_len: int) -> dict[str, Any]:
    """Parameters and FLOPs of a model, as in model.json."""
    described = Transformer(model).describe(seq_len)
    names = ("total_parameters", "trained_parameters", "active_parameters", "flops_per_token")
    return {name: described[name] for name in names}


def calibration_text(run: OpenedRun, spec: str, tokens: int, seed: int) -> list[Batch]:
    """About `tokens` tokens as batches: of the training text (`train`), or of any text that
    `tools.trace --corpus` takes.

    Raises:
      ConfigError: fewer tokens than one, or no such text.
    """
    if tokens < 1:
        raise ConfigError(f"tokens={tokens}: nearest valid value 1")
    if spec != TRAIN:
        return open_rows(run, open_text(run, spec), TraceOptions(tokens=tokens)).batches
    seq_len = run.experiment.data.seq_len
    size = max(1, min(run.experiment.train.batch_size, tokens // seq_len))
    stream = TrainStream(run.dataset, seed=seed, batch_size=size, seq_len=seq_len)
    return [stream.batch(step) for step in range(-(-tokens // (size * seq_len)))]


def agreement(run: OpenedRun, before: Tree, model: ModelConfig, after: Tree) -> Agreement:
    """The run's model and another on its first validation window, in their own dtypes.

    Args:
      before, after: `{params, router_state}`.
    """
    seq_len = run.experiment.data.seq_len
    batch = validation_rows(run.dataset, 1, seq_len, seq_len).batches[0]
    one, other = (
        _logits(config, tree, batch)
        for config, tree in ((run.experiment.model, before), (model, after))
    )
    scored = np.asarray(batch["loss_mask"]).reshape(-1) > 0
    target = np.asarray(batch["targets"]).reshape(-1)[scored]

    def loss(logits_TV: NDArray) -> float:
        logits = jnp.asarray(logits_TV[scored])
        return float(-jax.nn.log_softmax(logits)[jnp.arange(len(target)), target].mean())

    largest = float(np.abs(one[scored] - other[scored]).max())
    return Agreement(int(scored.sum()), loss(one), loss(other), largest)


def _logits(config: ModelConfig, tree: Tree, batch: Mapping[str, Any]) -> NDArray[np.float32]:
    model = Transformer(config)

    @jax.jit
    def logits(params: Tree, router_state: Tree, tokens: Tokens) -> jax.Array:
        x_BSD, _ = model.hidden(params, router_state, tokens, jax.random.key(0))
        table_VD = model.head_table(params)
        return jnp.einsum("bsd,vd->bsv", x_BSD, table_VD, preferred_element_type=jnp.float32)

    found = logits(tree["params"], tree["router_state"], tokens_of(batch))
    return np.asarray(found).reshape(-1, found.shape[-1])


def settings(given: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` of the new run's config, with values as JSON has them, or as they are.

    Raises:
      ConfigError: no such form, or a key that is the surgery's own.
    """
    found = {}
    for item in given:
        key, equals, text = item.partition("=")
        key = key.removeprefix("config.")
        if not equals or not key:
            raise ConfigError(f"--set={item}: KEY=VALUE is wanted, e.g. --set=train.steps=2000")
        if key == "seed" or key.partition(".")[0] == "model":
            raise ConfigError(f"--set={item}: {key} is what the surgery makes; see --help")
        try:
            found[key] = json.loads(text)
        except json.JSONDecodeError:
            found[key] = text
    return found


def write_converted(
    root: str | os.PathLike[str],
    run: OpenedRun,
    step: int,
    model: ModelConfig,
    tree: Tree,
    *,
    kind: str,
    seed: int,
    options: Any,
    record: Mapping[str, Any] | None = None,
    arrays: Mapping[str, NDArray[Any]] | None = None,
    changes: Mapping[str, Any] | None = None,
    argv: Sequence[str] = (),
) -> Experiment:
    """Makes a run directory of a model that surgery has made.

    Everything but the model is the source run's: text, optimizer, schedule, length. Its seed is
    another one, so that the text comes in another order than the source has seen it in.

    Args:
      root: an empty directory, or one to be made.
      run, step: what the surgery was done to.
      model, tree: the result, `{params, router_state}`; given up on the way.
      kind: of surgery: `upcycle`, `moefy`, ...
      seed: of the surgery, and added to the source's for the new run's own.
      options: a dataclass, what was asked for.
      record: what else belongs in surgery.json.
      arrays: what belongs in surgery.npz.
      changes: of the new run's config (`settings`).
      argv: command line for env.json.

    Raises:
      ConfigError: the directory holds something; a change is none of the config's.
    """
    with new_run(root) as made:
        source = run.experiment
        experiment = dataclasses.replace(
            source,
            name=made.root.resolve().name,
            model=model,
            seed=(source.seed + 1 + seed) % 2**31,
            data=with_own_tokenizer(source.data, made.root / BESIDE),
            # Checkpoints of a source in a store are the source's.
            checkpoint=dataclasses.replace(source.checkpoint, dir=""),
            finetune=None,  # parameters of a fine-tuned source are whole here
        )
        experiment = override(experiment, dict(changes or {}))
        fill(
            made,
            experiment,
            tree["params"],
            tree["router_state"],
            state="converted",
            argv=argv,
        )
        seq_len = experiment.data.seq_len
        write_json(
            made.root / SURGERY,
            {
                "format_version": FORMAT_VERSION,
                "kind": kind,
                "source": {
                    "run": str(run.root.resolve()),
                    "name": source.name,
                    "step": step,
                    "kind": _kind_of(run.root),
                },
                "seed": seed,
                "options": dataclasses.asdict(options),
                "before": counts(source.model, seq_len),
                "after": counts(model, seq_len),
                **(record or {}),
            },
        )
        if arrays:
            buffer = io.BytesIO()
            content: dict[str, Any] = {"format_version": np.int32(FORMAT_VERSION), **arrays}
            np.savez_compressed(buffer, **content)
            write_bytes_atomic(made.root / ARRAYS, buffer.getvalue())
        return experiment


def _kind_of(root: Path) -> str:
    """How the source came to be: `imported`, by another surgery, or trained here."""
    if (root / SURGERY).exists():
        return "converted"
    return "imported" if (root / BESIDE / "import.json").exists() else "trained"


def with_own_tokenizer(data: DataConfig, beside: Path) -> DataConfig:
    """The same data, with files of a pretrained tokenizer in the new run, which so needs no other
    directory."""
    if not data.tokenizer_file:
        return data
    theirs = Path(data.tokenizer_file)
    beside.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys((theirs.name, *CARRIED)):
        if (theirs.parent / name).is_file():
            shutil.copyfile(theirs.parent / name, beside / name)
    return dataclasses.replace(data, tokenizer_file=str((beside / theirs.name).resolve()))


def numpy_tree(tree: Tree) -> Tree:
    """The same arrays as NumPy's."""
    made: Tree = jax.tree.map(np.asarray, tree)
    return made
