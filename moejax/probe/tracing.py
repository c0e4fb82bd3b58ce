"""From a checkpoint and a labelled text to a trace file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from moejax.analysis import arrays
from moejax.analysis.arrays import MAX_ARRAY_BYTES
from moejax.analysis.traces import (
    COLUMNS,
    EMPTY_SLOT,
    LABELS,
    Labels,
    Trace,
    make_trace,
    read_labels,
    write_labels,
    write_trace,
)
from moejax.analysis.traces.labels import tokens_hash
from moejax.config import ConfigError
from moejax.data import TOKEN_CLASSES
from moejax.data.evaluation import EvaluationDocument
from moejax.models.metrics import moe_layers
from moejax.probe.corpus import Text
from moejax.probe.observe import NEED_P, observer
from moejax.probe.opened import OpenedRun, Restored, Say
from moejax.probe.program import make_pass
from moejax.probe.rows import MAX_READ_BYTES, LabelledRows, document_rows, validation_rows
from moejax.sharding import Rows
from moejax.train.step import model_inputs

Tree = dict[str, Any]
MAX_TOKENS = 1 << 22


@dataclasses.dataclass(frozen=True)
class TraceOptions:
    """How much of a text is traced, and how much of each token is kept.

    Attributes:
      tokens: most tokens of the trace.
      probs: also keep every expert's probability.
      slots: of each token's experts keep so many, those its router likes best; 0: all. The model
        uses all of them in any case: which experts an unharmed model would rather have.
    """

    tokens: int = 16384
    probs: bool = False
    slots: int = 0

    def check(self, run: OpenedRun) -> None:
        """Raises ConfigError if the trace of this run would be larger than a reader takes."""
        groups = run.model.groups
        experts = max((len(group.widths) for group in groups), default=0)
        slots = max((group.config.router.slots(len(group.widths)) for group in groups), default=0)
        if self.slots > slots:
            raise ConfigError(
                f"--slots={self.slots}: a token has {slots} at most; nearest valid value {slots}"
            )
        slots = self.slots or slots
        cells = run.model.num_moe_layers * max(
            2 * slots, 2 * len(NEED_P), 2 * experts if self.probs else 0
        )
        most = min(MAX_TOKENS, MAX_ARRAY_BYTES // max(cells, 1))
        if not 1 <= self.tokens <= most:
            near = min(max(self.tokens, 1), most)
            raise ConfigError(
                f"--tokens={self.tokens}: an array of the trace is at most {MAX_ARRAY_BYTES:,} "
                f"bytes{', with probabilities' if self.probs else ''}; nearest valid value {near}"
            )


def open_rows(run: OpenedRun, text: Text, options: TraceOptions) -> LabelledRows:
    """The tokens of a text that are traced, as batches of the size of the run's evaluation.

    Raises:
      ConfigError: the text cannot be read or holds nothing.
    """
    devices = 1 if run.mesh is None else run.mesh.size
    batch_size = math.ceil(run.experiment.evaluation.batch_size / devices) * devices
    seq_len = run.experiment.data.seq_len
    if text.documents is None:
        return validation_rows(run.dataset, batch_size, seq_len, options.tokens)
    documents = _read(text.documents)
    return document_rows(documents, run.dataset, batch_size, seq_len, options.tokens)


def trace(
    run: OpenedRun,
    restored: Restored,
    rows: LabelledRows,
    forward: Callable[[Tree, Tree, Tree], Tree],
    slots: int = 0,
) -> Trace:
    """Runs a checkpoint over the rows.

    Args:
      run: whose model it is.
      restored: of one step.
      rows: what `open_rows` returned.
      forward: `make_pass(run.model, observer(...))`, compiled once for all steps.
      slots: as `TraceOptions.slots`.
    """
    place = Rows(run.mesh, rows.batches[0]["tokens"].shape[0])
    pieces = []
    for number, batch in enumerate(rows.batches):
        inputs = place.put_whole(model_inputs(batch))
        out = jax.device_get(forward(restored.params, restored.router_state, inputs))
        pieces.append(_first_slots(_host(run, out, batch, number), slots))
    joined: dict[str, NDArray[Any]] = {}
    for name, first in pieces[0].items():
        axes = COLUMNS[name].axes
        joined[name] = (
            np.concatenate([piece[name] for piece in pieces], axes.index("T"))
            if "T" in axes
            else first
        )
    # Rows and documents were numbered; sequences are counted.
    changes_T = np.diff(joined["sequence_T"], prepend=joined["sequence_T"][:1]) != 0
    joined["sequence_T"] = np.cumsum(changes_T)
    return make_trace(joined, restored.step)


def write_traces(
    run: OpenedRun,
    text: Text,
    steps: Iterable[int | None],
    options: TraceOptions | None = None,
    out: Path | None = None,
    say: Say = print,
) -> list[Path]:
    """Traces checkpoints of a run over one text; writes `STEP.npz` of each, and `labels.json`.

    The same checkpoint and text give the same bytes. All traces of a folder are of the same tokens.

    Args:
      run: the run.
      text: what it reads.
      steps: which checkpoints; None stands for the newest whole one.
      options: how much is traced.
      out: the folder; default `trace/NAME` of the run.
      say: told of each file, and of damaged checkpoints.

    Raises:
      ConfigError: no such checkpoint or text, too many tokens, or a folder with other tokens.
      StorageError: a checkpoint that was asked for is damaged.
    """
    options = options or TraceOptions()
    options.check(run)
    steps = list(steps)
    for step in steps:
        run.require(step)
    rows = open_rows(run, text, options)
    folder = run.root / "trace" / text.name if out is None else out
    forward = make_pass(run.model, observer(probs=options.probs))
    written: list[Path] = []
    for step in steps:
        made = trace(run, run.restore(step, say), rows, forward, options.slots)
        labels = _labels(run, text, rows, made, options.slots)
        if not written:
            _require_same_tokens(folder, labels, {s for s in (*steps, made.step) if s is not None})
            write_labels(folder / LABELS, labels)
        path = folder / f"{made.step}.npz"
        write_trace(path, made)
        written.append(path)
        say(_line(path, made))
    return written


def _read(documents: Callable[[], Iterable[EvaluationDocument]]) -> list[EvaluationDocument]:
    found, size = [], 0
    for document in documents():
        found.append(document)
        size += len(document.text.encode())
        if size >= MAX_READ_BYTES:
            break
    return found


def _host(run: OpenedRun, out: Tree, batch: Tree, number: int) -> dict[str, NDArray[Any]]:
    """Everything of one batch: valid tokens only, in row order; `sequence_T` not counted yet."""
    found = run.model.host_trace(out["trace"], batch)
    segment_BS = np.asarray(batch["segment_ids"], np.int64)
    valid_T = segment_BS.reshape(-1) > 0
    batch_size, length = segment_BS.shape
    row_B1 = number * batch_size + np.arange(batch_size)[:, None]
    found["sequence_T"] = (row_B1 * (length + 1) + segment_BS).reshape(-1)[valid_T]
    found["predicted_T"] = np.asarray(out["predicted_BS"]).reshape(-1)[valid_T]
    for name in ("pos", "difficulty", "parallel"):
        found[f"{name}_T"] = batch[name].reshape(-1)[valid_T]
    return found | _observed(run, out["observed"], valid_T)


def _observed(
    run: OpenedRun, groups: Sequence[Tree], valid_T: NDArray[np.bool_]
) -> dict[str, NDArray[Any]]:
    """Observations of all MoE layers in model order; what a layer lacks is NaN (weights: 0)."""
    layers = run.model.num_moe_layers
    tokens = int(valid_T.sum())
    row_of = {layer: row for row, layer in enumerate(moe_layers(run.model))}
    tables: dict[str, NDArray[Any]] = {
        "entropy_LT": np.full((layers, tokens), np.nan, np.float32),
        "top1_LT": np.full((layers, tokens), np.nan, np.float32),
        "margin_LT": np.full((layers, tokens), np.nan, np.float32),
        "need_LTQ": np.full((layers, tokens, len(NEED_P)), np.nan, np.float32),
        "need_p_Q": np.asarray(NEED_P, np.float32),
    }
    for name, fill in (("weight_TK", 0), ("probs_TE", np.nan)):
        widths = [seen[name].shape[-1] for seen in groups if name in seen]
        if widths or name == "weight_TK":
            dtype = COLUMNS[f"{name[:-2]}L{name[-2:]}"].held
            shape = (layers, tokens, max(widths, default=0))
            tables[f"{name[:-2]}L{name[-2:]}"] = np.full(shape, fill, dtype)
    for group, seen in zip(run.model.groups, groups, strict=True):
        rows = [row_of[layer] for layer in group.layers]
        for name, array in seen.items():
            stem, _, axes = name.rpartition("_")
            kept = np.asarray(array)[:, valid_T]
            table = tables[f"{stem}_L{axes}"]
            if kept.ndim == 2:
                table[rows] = kept
                continue
            table[rows] = 0
            table[rows, :, : kept.shape[-1]] = kept
    return tables


def _first_slots(found: dict[str, NDArray[Any]], slots: int) -> dict[str, NDArray[Any]]:
    """Arrays of a batch with the first slots alone; counts and widths are of those."""
    if not slots:
        return found
    expert_LTK = found["expert_LTK"][..., :slots]
    filled_LTK = expert_LTK != EMPTY_SLOT
    row_L11 = np.arange(len(expert_LTK))[:, None, None]
    width_LTK = found["width_LE"][row_L11, np.where(filled_LTK, expert_LTK, 0)]
    return found | {
        "expert_LTK": expert_LTK,
        "weight_LTK": found["weight_LTK"][..., :slots],
        "active_LT": filled_LTK.sum(-1).astype(np.uint16),
        "width_LT": np.where(filled_LTK, width_LTK, 0).sum(-1).astype(np.int32),
    }


def _labels(run: OpenedRun, text: Text, rows: LabelledRows, made: Trace, slots: int) -> Labels:
    tokenizer = run.dataset.tokenizer
    return Labels(
        corpus=text.name,
        spec=text.spec,
        part=text.part,
        domains=rows.domains,
        languages=rows.languages,
        parts_of_speech=rows.parts_of_speech,
        token_classes=TOKEN_CLASSES,
        difficulties=rows.difficulties,
        sources=tuple(text.sources()),
        tokens_sha256=tokens_hash(made),
        tokenizer_sha256=run.dataset.tokenizer_hash,
        pieces=tuple(
            tokenizer.token_bytes(token).decode("utf-8", "backslashreplace")
            for token in range(tokenizer.vocab_size)
        ),
        slots=slots,
    )


def _require_same_tokens(folder: Path, labels: Labels, replaced: set[int]) -> None:
    """Refuses to put traces of other tokens or slots beside those that are there and stay."""
    others = [path for path in arrays.newest(folder) if int(path.stem) not in replaced]
    if not others or not (folder / LABELS).exists():
        return
    there = read_labels(folder / LABELS)
    if (there.tokens_sha256, there.slots) != (labels.tokens_sha256, labels.slots):
        raise ConfigError(
            f"{folder}: holds traces of other tokens or slots ({others[0].name}); trace them again "
            "with the same --tokens and --slots, remove them, or choose another --out"
        )


def _line(path: Path, made: Trace) -> str:
    assert made.loss_T is not None and made.sequence_T is not None
    loss = float(np.nanmean(made.loss_T, dtype=np.float64)) if made.num_tokens else math.nan
    sequences = int(made.sequence_T[-1]) + 1 if made.num_tokens else 0
    return (
        f"{path}: {made.num_tokens:,} tokens in {sequences:,} sequences, {made.num_layers} MoE "
        f"layers, loss {loss:.4f} nats/token"
    )
