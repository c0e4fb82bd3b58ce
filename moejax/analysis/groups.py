"""The evaluation trace by token class, frequency and domain: who gets how much compute."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from numpy.typing import NDArray

from moejax.analysis import arrays
from moejax.analysis.metrics import GroupMeans, group_means, rank_bin, rank_edges
from moejax.analysis.runs import Run

_FIELDS = {
    "layers_L": arrays.Field("L", "iu"),
    "active_LT": arrays.Field("LT", "iu"),
    "width_LT": arrays.Field("LT", "iu"),
    "class_T": arrays.Field("T", "iu"),
    "frequency_rank_T": arrays.Field("T", "iu"),
    "domain_T": arrays.Field("T", "iu"),
    "loss_T": arrays.Field("T", "f"),
}
QUANTITIES = ("active", "width", "expert_width", "loss")


@dataclasses.dataclass(frozen=True)
class Grouping:
    """One way of dividing tokens: `labels` of G groups and, per quantity, means and counts."""

    labels: tuple[str, ...]
    means: dict[str, GroupMeans]


@dataclasses.dataclass(frozen=True)
class TraceGroups:
    """A run's newest readable trace, reduced. Quantities are per token, averaged over MoE layers:

    `active` experts per token and layer, `width` hidden units of routed experts per token and
    layer, `expert_width` mean width of a chosen expert, `loss` nats per token.
    """

    step: int
    tokens: int
    layers: int
    by_class: Grouping
    by_frequency: Grouping
    by_domain: Grouping


def read_groups(run: Run, highest_rank: int | None = None) -> TraceGroups | None:
    """Reduces the newest readable `trace/STEP.npz` and notes what is missing; None if none."""
    for path in arrays.newest(run.root / "trace"):
        try:
            found = arrays.read_arrays(path, _FIELDS)
        except arrays.ArrayFileError as error:
            run.note("warning", f"trace/{path.name}", f"{error}; an older one is used, if any")
            continue
        return _reduce(run, int(path.stem), found, highest_rank)
    if run.routing is not None and len(run.routing.layers_L):
        what = "no readable trace: absent from the figures by token class, frequency and domain"
        run.note("warning", "trace/", what)
    return None


def highest_rank(runs: list[Run]) -> int:
    """The largest frequency rank of any run's vocabulary, so that all runs share their bins."""
    sizes = [run.data.number("vocab_size") for run in runs]
    known = [int(size) for size in sizes if np.isfinite(size) and 1 <= size <= 1 << 31]
    return max(known, default=256) - 1


def _reduce(run: Run, step: int, found: dict[str, NDArray], highest: int | None) -> TraceGroups:
    layers, tokens = found["active_LT"].shape
    quantities = _per_token(found)
    rank = found["frequency_rank_T"]
    if highest is None:
        highest = int(rank.max(initial=0))
    edges = rank_edges(highest)
    groupings = {
        "by_class": _named(found["class_T"], run.data.strings("token_classes"), "class"),
        "by_frequency": (
            rank_bin(rank, edges),
            tuple(_rank_label(a, b) for a, b in itertools.pairwise(edges.tolist())),
        ),
        "by_domain": _named(found["domain_T"], run.data.strings("domains"), "domain"),
    }
    reduced = {
        name: Grouping(
            labels,
            {
                key: group_means(value, ids, len(labels))
                for key, value in quantities.items()
                if layers or key == "loss"
            },
        )
        for name, (ids, labels) in groupings.items()
    }
    return TraceGroups(step, tokens, layers, **reduced)


def _per_token(found: dict[str, NDArray]) -> dict[str, NDArray]:
    """Means over layers `[T]`; a token dropped by every layer has no expert width (NaN)."""
    active, width = found["active_LT"], found["width_LT"]
    if not active.shape[0]:
        return {"loss": found["loss_T"]}
    total_active = active.sum(0, dtype=np.float64)
    total_width = width.sum(0, dtype=np.float64)
    chosen = np.divide(
        total_width, total_active, out=np.full(total_width.shape, np.nan), where=total_active > 0
    )
    return {
        "active": total_active / active.shape[0],
        "width": total_width / active.shape[0],
        "expert_width": chosen,
        "loss": found["loss_T"],
    }


def _named(ids: NDArray, names: tuple[str, ...], kind: str) -> tuple[NDArray, tuple[str, ...]]:
    """Ids with a label for each that occurs, also for those that data.json does not name."""
    highest = int(ids.max()) if ids.size else -1
    extra = (f"{kind} {i}" for i in range(len(names), min(highest + 1, 4096)))
    return ids, (*names, *extra)


def _rank_label(low: int, high: int) -> str:
    return f"{low:,}" if high - low == 1 else f"{low:,}–{high - 1:,}"
