"""A checkpoint under an intervention: every value over the same tokens, and the file of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from moejax.analysis.clusters import clustered_mean
from moejax.analysis.interventions import (
    FOLDER,
    HEADER,
    Estimate,
    Measured,
    Sweep,
    line,
    write_sweep,
)
from moejax.models.metrics import moe_layers
from moejax.probe.corpus import Text
from moejax.probe.interventions.plan import Intervention, Point, make_edits, points
from moejax.probe.interventions.program import Edits, make_losses
from moejax.probe.opened import OpenedRun, Restored, Say
from moejax.probe.rows import LabelledRows
from moejax.probe.tracing import TraceOptions, open_rows
from moejax.sharding import Rows
from moejax.train.step import model_inputs

Tree = dict[str, Any]
Losses = Callable[[Tree, Tree, Tree, Edits | None], Tree]


class Evaluator:
    """The tokens of a text, ready on the device, and what a model's losses on them add up to.

    Attributes:
      count_S: float64, scored tokens of each sequence (a window; see docs/traces.md).
      tokens_sha256: of the tokens, as in `Labels`.
    """

    def __init__(self, run: OpenedRun, rows: LabelledRows, losses: Losses) -> None:
        self._run, self._losses = run, losses
        place = Rows(run.mesh, rows.batches[0]["tokens"].shape[0])
        self._inputs = [place.put_whole(model_inputs(batch)) for batch in rows.batches]
        self._valid = [batch["segment_ids"].reshape(-1) > 0 for batch in rows.batches]
        self._scored = [batch["loss_mask"].reshape(-1) > 0 for batch in rows.batches]
        self._sequence = sequences_of(rows)
        self._tokens = max(int(sum(valid_T.sum() for valid_T in self._valid)), 1)
        sequences = 1 + max((int(found.max(initial=-1)) for found in self._sequence), default=-1)
        self.count_S = np.zeros(sequences)
        for scored_T, sequence_T in zip(self._scored, self._sequence, strict=True):
            self.count_S += np.bincount(sequence_T[scored_T], minlength=sequences)
        tokens = [
            b["tokens"].reshape(-1)[v] for b, v in zip(rows.batches, self._valid, strict=True)
        ]
        sequences_T = [s[v] for s, v in zip(self._sequence, self._valid, strict=True)]
        pair = np.stack([np.concatenate(tokens), np.concatenate(sequences_T)]).astype("<i4")
        self.tokens_sha256 = hashlib.sha256(pair.tobytes()).hexdigest()

    def __call__(
        self, restored: Restored, edits: Edits | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """The pass over all batches.

        Returns:
          `nll_S` (nats, sum over the scored tokens of each sequence), and by MoE layer `active_L`
          (experts per token that were computed) and `width_L` (their hidden units).
        """
        nll_S = np.zeros(len(self.count_S))
        totals: list[NDArray[np.int64]] = []
        for inputs, scored_T, sequence_T in zip(
            self._inputs, self._scored, self._sequence, strict=True
        ):
            out = jax.device_get(
                self._losses(restored.params, restored.router_state, inputs, edits)
            )
            nll_T = np.asarray(out["nll_BS"], np.float64).reshape(-1)[scored_T]
            nll_S += np.bincount(sequence_T[scored_T], nll_T, minlength=len(nll_S))
            counts = [np.asarray(count_LE, np.int64) for count_LE in out["count_LE"]]
            totals = [a + b for a, b in zip(totals, counts, strict=True)] if totals else counts
        model = self._run.model
        row_of = {layer: row for row, layer in enumerate(moe_layers(model))}
        active_L, width_L = np.zeros(model.num_moe_layers), np.zeros(model.num_moe_layers)
        for group, count_LE in zip(model.groups, totals, strict=True):
            rows = [row_of[layer] for layer in group.layers]
            active_L[rows] = count_LE.sum(-1) / self._tokens
            width_L[rows] = count_LE @ np.asarray(group.widths, np.int64) / self._tokens
        return nll_S, active_L, width_L


def sweep(
    run: OpenedRun,
    text: Text,
    restored: Restored,
    evaluator: Evaluator,
    intervention: Intervention,
    say: Say = print,
) -> Sweep:
    """Measures the untouched model, then every point.

    Args:
      evaluator: of this run and text; used again, it compiles nothing again.
      say: told of each row of the table.

    Raises:
      ConfigError: the intervention means nothing for this model.
    """
    planned = points(run.model, intervention)
    edits = make_edits(run.model, intervention, planned)
    layers = moe_layers(run.model)
    group_of = {layer: group for group in run.model.groups for layer in group.layers}
    count_S = evaluator.count_S
    shared_L = np.array([group_of[layer].config.shared_width for layer in layers], np.float64)
    plain_S, active_L, width_L = evaluator(restored, None)
    loss = clustered_mean(plain_S, count_S)
    none = Estimate(0.0, 0.0, 0.0)
    untouched = Measured("untouched", (), loss, none, active_L, width_L, shared_L)
    say(HEADER)
    say(line(untouched, len(layers)))
    rows = []
    for point, edit in zip(planned, edits, strict=True):
        nll_S, active_L, width_L = evaluator(restored, edit)
        rows.append(
            Measured(
                str(point.value),
                point.layers,
                clustered_mean(nll_S, count_S),
                clustered_mean(nll_S - plain_S, count_S),
                active_L,
                width_L,
                np.where(_without_shared(intervention, point, layers), 0.0, shared_L),
            )
        )
        say(line(rows[-1], len(layers)))
    return Sweep(
        what=intervention.what,
        when=intervention.when,
        renormalise=intervention.renormalise,
        acts_on=intervention.layers,
        corpus=text.name,
        spec=text.spec,
        part=text.part,
        step=restored.step,
        tokens=int(count_S.sum()),
        sequences=int((count_S > 0).sum()),
        tokens_sha256=evaluator.tokens_sha256,
        layers_L=np.array(layers, np.int32),
        experts_L=np.array([len(group_of[layer].widths) for layer in layers], np.int32),
        routers=tuple(
            getattr(group_of[layer].config.router, "registered_name", "") for layer in layers
        ),
        untouched=untouched,
        rows=tuple(rows),
    )


def write_sweeps(
    run: OpenedRun,
    text: Text,
    steps: Iterable[int | None],
    intervention: Intervention,
    tokens: int = 16384,
    out: Path | None = None,
    say: Say = print,
) -> list[Path]:
    """Sweeps checkpoints of a run over one text; writes `STEP.json` of each.

    The same checkpoint, text and values give the same bytes, on the same machine and versions.

    Args:
      steps: which checkpoints; None stands for the newest whole one.
      tokens: of the text, at most; sampled as for a trace.
      out: the folder; default `interventions/WHAT/CORPUS` of the run, where WHAT names every
        convention that is not the default one.
      say: told of each row and file, and of damaged checkpoints.

    Raises:
      ConfigError: no such checkpoint or text, too many tokens, or an intervention that means
        nothing for this model.
      StorageError: a checkpoint that was asked for is damaged.
    """
    options = TraceOptions(tokens=tokens)
    options.check(run)
    points(run.model, intervention)  # before anything is read
    steps = list(steps)
    for step in steps:
        run.require(step)
    evaluator = Evaluator(run, open_rows(run, text, options), make_losses(run.model))
    folder = run.root / FOLDER / intervention.folder / text.name if out is None else out
    written = []
    for step in steps:
        made = sweep(run, text, run.restore(step, say), evaluator, intervention, say)
        path = folder / f"{made.step}.json"
        write_sweep(path, made)
        written.append(path)
        say(f"{path}: {made.tokens:,} tokens scored in {made.sequences:,} sequences")
    return written


def sequences_of(rows: LabelledRows) -> list[NDArray[np.int64]]:
    """The sequence of each position of each batch, counted as in a trace; -1 is padding."""
    found, first = [], 0
    for batch in rows.batches:
        segment_BS = np.asarray(batch["segment_ids"], np.int64)
        length = segment_BS.shape[1]
        key_BS = np.arange(segment_BS.shape[0])[:, None] * (length + 1) + segment_BS
        valid_T = segment_BS.reshape(-1) > 0
        key_T = key_BS.reshape(-1)[valid_T]
        sequence_T = np.full(valid_T.shape, -1, np.int64)
        sequence_T[valid_T] = first + np.cumsum(np.diff(key_T, prepend=key_T[:1]) != 0)
        first = int(sequence_T.max(initial=first - 1)) + 1
        found.append(sequence_T)
    return found


def _without_shared(
    intervention: Intervention, point: Point, layers: list[int]
) -> NDArray[np.bool_]:
    acts_L = np.isin(layers, point.layers)
    return acts_L & (intervention.what == "shared_for_routed")
