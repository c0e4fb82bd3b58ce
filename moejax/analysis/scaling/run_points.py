"""Points from run directories: what was really trained and counted, and who was left out."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Sequence

import numpy as np

from moejax.analysis import text
from moejax.analysis.finetuning.tuned import is_tuned
from moejax.analysis.grids import axes_of, grid_notes
from moejax.analysis.provenance import flat_config
from moejax.analysis.runs import Record, Run, find_runs, load_runs
from moejax.analysis.scaling.points import COLUMNS, Curve, Dataset, make_points
from moejax.analysis.summary import kind
from moejax.config.knobs import ConfigError, nearest

N_KINDS = {
    "active_non_embedding": "active parameters without embedding and head, as measured",
    "active": "active parameters, as measured",
    "total": "all parameters",
}
_FREE = ("seed", "name", "workdir")


def from_runs(
    paths: Sequence[str | os.PathLike[str]], n: str = "active_non_embedding", by: str = "group"
) -> Dataset:
    """Reads finished, comparable runs of run directories and grid roots.

    N as `N_KINDS` says (nominal where a run has not measured it); D the tokens seen; C the training
    FLOPs that the run counted; loss the last validation loss. E: routed experts per MoE layer; G:
    4 d_model over the mean width of an expert; A: active over all expert width. A cell is one
    configuration without its seed; of several runs with one seed the last counts.

    Args:
      paths: run directories, or directories of runs.
      n: what N is.
      by: `group` (the kind of router) or an axis of the runs' grid: what groups are.

    Raises:
      ConfigError: no such directory, N or axis, or no usable run.
    """
    if n not in N_KINDS:
        raise ConfigError(f"--n={n}: {nearest(n, tuple(N_KINDS)) or ', '.join(N_KINDS)}")
    runs, notes = load_runs(find_runs(paths))
    notes = [*notes, *(note for note in grid_notes(paths) if note.severity == "excluded")]
    excluded = [(note.run, note.what) for note in notes]
    usable: dict[tuple[str, str], Run] = {}
    for run in _comparable(runs, excluded):
        numbers = _numbers(run, n)
        missing = [name for name in ("n", "d", "c") if not numbers[name] > 0]
        if missing:
            excluded.append((run.name, f"has no {missing[0].upper()} ({COLUMNS[missing[0]]})"))
            continue
        key = _cell(run), _seed(run)
        if key in usable:
            why = f"has the configuration and seed of {run.name}, which counts instead"
            excluded.append((usable[key].name, why))
        usable[key] = run
    if not usable:
        reasons = "; ".join(f"{name}: {why}" for name, why in excluded[:3])
        raise ConfigError(f"no finished run to fit{': ' + reasons if reasons else ''}")
    kept = list(usable.items())
    rows = [_numbers(run, n) for _, run in kept]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    group = [kind(run) or "?" if by == "group" else _label(run, by) for _, run in kept]
    cell = [key[0] for key, _ in kept]
    points = make_points(
        run=[run.name for _, run in kept],
        group=group,
        cell=cell,
        seed=[key[1] for key, _ in kept],
        **columns,
    )
    curves = [
        curve
        for (_, run), g, c, size in zip(kept, group, cell, points.n_I, strict=True)
        if (curve := _curve(run, g, c, float(size))) is not None
    ]
    planned = "; nominal where not measured" if n != "total" else ""
    return Dataset(
        points,
        tuple(curves),
        N_KINDS[n] + planned,
        "training FLOPs as counted by the runs",
        excluded=tuple(excluded),
    )


def _comparable(runs: Sequence[Run], excluded: list[tuple[str, str]]) -> list[Run]:
    """Finished runs with a loss on the text and tokenizer that most of them share."""
    finished = []
    for run in runs:
        loss = run.final.number("eval", "loss")
        if run.state != "done":
            excluded.append((run.name, f"is {run.state}, not done"))
        elif is_tuned(run):
            excluded.append((run.name, "is fine-tuned: its base's training is not in its compute"))
        elif not loss > 0:
            excluded.append((run.name, "final.json has no finite eval loss"))
        else:
            finished.append(run)
    texts = Counter(run.text_id for run in finished)
    if len(texts) < 2:
        return finished
    usual = texts.most_common(1)[0][0]
    for run in finished:
        if run.text_id != usual:
            excluded.append((run.name, "another text or tokenizer than most runs"))
    return [run for run in finished if run.text_id == usual]


def _cell(run: Run) -> str:
    """A hash of the configuration without what differs between seeds."""
    flat = flat_config(run)
    rest = sorted((k, v) for k, v in flat.items() if k.rpartition(".")[2] not in _FREE)
    if not rest:
        return run.name
    return hashlib.sha256(repr(rest).encode()).hexdigest()[:10]


def _seed(run: Run) -> str:
    flat = flat_config(run)
    return "/".join(v for k, v in sorted(flat.items()) if k.rpartition(".")[2] == "seed")


def _numbers(run: Run, n: str) -> dict[str, float]:
    key = {"active_non_embedding": "active_non_embedding_parameters", "active": "active_parameters"}
    size = run.model.number("total_parameters")
    if n != "total":
        size = _first(run.final.number("measured", key[n]), run.model.number(key[n]))
    layers = [layer for layer in run.model.records("layers") if layer.string("kind") == "moe"]
    experts = [layer.number("experts") for layer in layers]
    widths = [w for layer in layers for w in _widths(layer)]
    shared = sum(_finite(layer.number("shared_width")) for layer in layers)
    active = run.final.number("measured", "active_width") * len(layers)
    d_model = run.config.number("config", "model", "d_model")
    return {
        "n": size,
        "d": _first(run.final.number("tokens"), run.metrics.eval.last("tokens")),
        "c": run.final.number("compute", "flops"),
        "e": float(np.mean(experts)) if experts else 1.0,
        "g": 4 * d_model / float(np.mean(widths)) if widths else math.nan,
        "a": (active + shared) / (sum(widths) + shared) if widths else math.nan,
        "loss": run.final.number("eval", "loss"),
    }


def _widths(layer: Record) -> list[float]:
    value = layer.get("widths")
    found = value[:4096] if isinstance(value, list) else []
    return [float(w) for w in found if isinstance(w, int | float) and 0 < w < 1e9]


def _curve(run: Run, group: str, cell: str, n: float) -> Curve | None:
    rows = run.metrics.eval
    c_S, d_S, loss_S = rows["compute/flops"], rows["tokens"], rows["eval/loss"]
    good = (c_S > 0) & (d_S > 0) & (loss_S > 0)
    good &= np.isfinite(c_S) & np.isfinite(d_S) & np.isfinite(loss_S)
    if good.sum() < 2 or not n > 0:
        return None
    order = np.argsort(c_S[good], kind="stable")
    picked = (values[good][order] for values in (c_S, d_S, loss_S))
    return Curve(run.name, group, cell, n, *picked)


def _first(*values: float) -> float:
    return next((v for v in values if math.isfinite(v)), math.nan)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _label(run: Run, axis: str) -> str:
    """The label of `axis` of the run's cell.

    Raises:
      ConfigError: the run is no cell of a grid, or its grid has no such axis.
    """
    own = axes_of(run)
    if not own:
        raise ConfigError(
            f"--by={text.clean(axis)}: {run.name} is no cell of a grid; nearest valid: --by=group"
        )
    if axis not in own:
        known = ("group", *own)
        hint = nearest(axis, known) or f"; there are {', '.join(known)}"
        raise ConfigError(f"--by={text.clean(axis)}: no axis of the grid{hint}")
    return own[axis]
