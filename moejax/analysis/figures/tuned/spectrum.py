"""Singular values of what was added to each matrix: is one direction all of it?"""

from __future__ import annotations

import math

import numpy as np

from moejax.analysis import text
from moejax.analysis.charts.spec import Axis, Chart, series
from moejax.analysis.evidence import Evidence
from moejax.analysis.figures.base import Figure, Row, missing
from moejax.analysis.finetuning.spectra import Matrix

TITLE = "Spectrum of the change"
CAPTION = (
    "Singular values of the change of each matrix. Cumulative: the share of its squared Frobenius "
    "norm in the largest ones, mean over matrices, the band from the 10th to the 90th percentile. "
    "A flatter curve spreads the change over more directions, as MultiLoRA is meant to. A change "
    "of rank R (of MultiLoRA: modules times rank; both are in the table) has at most R directions "
    "and at least 1/R of its norm in the first: ranks bound the shares, so compare with them."
)
HEADER: Row = (
    "base", "task", "method", "run", "matrix", "layer", "expert", "rank", "share_top1",
    "share_top4", "effective_rank",
)  # fmt: skip
VALUES = 64  # of a curve


def build(evidence: Evidence) -> Figure:
    """A chart of cumulative shares and one of the top share by layer, per base and task."""
    study = evidence.finetuning
    rows: list[Row] = [HEADER]
    found: dict[tuple[str, str], dict[str, list[Matrix]]] = {}
    look: dict[str, int] = {}
    for cell in study.cells:
        for one in cell.runs:
            matrices = evidence.spectrum(one.tuned.view)
            if not matrices:
                continue
            look.setdefault(cell.name, len(look))
            place = found.setdefault((cell.base.name, cell.task), {})
            place.setdefault(cell.name, []).extend(matrices)
            head = (cell.base.name, cell.task, cell.name, one.tuned.name)
            rows += [
                (*head, m.path, m.layer, m.expert, m.rank, m.top1, m.top4, m.effective_rank)
                for m in matrices
            ]
    if not found:
        why = "no fine-tuned run has a spectrum (python -m tools.adapter spectrum writes one)"
        return missing("finetuning-spectrum", TITLE, why)
    several = len({base for base, _ in found}) > 1
    shares, tops = [], []
    for number, ((base, task), methods) in enumerate(found.items()):
        title = f"{task}, {text.shorten(base, 40)}" if several else task
        shares.append(_cumulative(f"finetuning-spectrum-{number + 1}", title, methods, look))
        top = _by_layer(f"finetuning-spectrum-layers-{number + 1}", title, methods, look)
        tops += [] if top is None else [top]
    tabs = [("Cumulative", tuple(shares)), ("By layer", tuple(tops))]
    kept = tuple((label, charts) for label, charts in tabs if charts)
    return Figure("finetuning-spectrum", TITLE, CAPTION, tuple(rows), kept)


def _cumulative(
    key: str, title: str, methods: dict[str, list[Matrix]], look: dict[str, int]
) -> Chart:
    lines = []
    for name, matrices in methods.items():
        length = min(VALUES, max(m.energy_R.size for m in matrices))
        share_MR = np.ones((len(matrices), length))
        for share_R, matrix in zip(share_MR, matrices, strict=True):
            part = np.cumsum(matrix.energy_R)[:length]
            share_R[: part.size] = part
        low, high = np.quantile(share_MR, (0.1, 0.9), axis=0)
        mean = share_MR.mean(0)
        notes = [f"{name}: {share:.3f} in the first {i + 1}" for i, share in enumerate(mean)]
        x = np.arange(1, length + 1)
        lines.append(series(name, look[name], x, mean, low=low, high=high, notes=notes))
    return Chart(
        key,
        title,
        "Line chart of the cumulative share of the squared Frobenius norm over the number of "
        f"singular values for {len(lines)} methods, {title}.",
        Axis("singular values, largest first", whole=True),
        Axis("share of the squared Frobenius norm", low=0.0, high=1.0),
        tuple(lines),
    )


def _by_layer(
    key: str, title: str, methods: dict[str, list[Matrix]], look: dict[str, int]
) -> Chart | None:
    lines = []
    for name, matrices in methods.items():
        by_layer: dict[int, list[float]] = {}
        for matrix in matrices:
            if matrix.layer >= 0 and math.isfinite(matrix.top1):
                by_layer.setdefault(matrix.layer, []).append(matrix.top1)
        layers = sorted(by_layer)
        mean = [float(np.mean(by_layer[layer])) for layer in layers]
        lines.append(series(name, look[name], layers, mean))
    if not any(line.x_N.size for line in lines):
        return None
    return Chart(
        key,
        title,
        f"Line chart of the share of the largest singular value by layer for {len(lines)} methods.",
        Axis("layer", whole=True),
        Axis("share of the largest singular value, mean over matrices", low=0.0, high=1.0),
        tuple(lines),
    )
