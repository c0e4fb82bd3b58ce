"""The evaluation trace by token class, frequency and domain: who gets how much compute."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
from numpy.typing import NDArray

from moejax.analysis import arrays
from moejax.analysis.intervals import t_quantile
from moejax.analysis.metrics import rank_bin, rank_edges
from moejax.analysis.routing.grouped import Grouped, reduce_groups, sequences_of
from moejax.analysis.runs import Run

_FIELDS = {
    "layers_L": arrays.Field("L", "iu"),
    "active_LT": arrays.Field("LT", "iu"),
    "width_LT": arrays.Field("LT", "iu"),
    "class_T": arrays.Field("T", "iu"),
    "frequency_rank_T": arrays.Field("T", "iu"),
    "domain_T": arrays.Field("T", "iu"),
    "loss_T": arrays.Field("T", "f"),
    # Without both, all tokens are one sequence, and nothing has an interval.
    "sequence_T": arrays.Field("T", "iu", required=False),
    "position_T": arrays.Field("T", "iu", required=False),
}
QUANTITIES = ("active", "width", "expert_width", "loss")
FEW = 30  # tokens of a group below which its mean is not compared


@dataclasses.dataclass(frozen=True)
class Grouping:
    """One way of dividing tokens: `labels` of G groups and, per quantity, means and counts.

    Intervals take the sequences of the text, not its tokens, as independent draws.
    """

    labels: tuple[str, ...]
    means: dict[str, Grouped]


@dataclasses.dataclass(frozen=True)
class Gap:
    """Mean of one group minus that of another, and half of its 95 % interval (NaN: not known)."""

    of: str
    minus: str
    mean: float
    half_width: float


@dataclasses.dataclass(frozen=True)
class TraceGroups:
    """A run's newest readable trace, reduced. Quantities are per token, averaged over MoE layers:

    `active` experts per token and layer, `width` hidden units of routed experts per token and
    layer, `expert_width` mean width of a chosen expert, `loss` nats per token. `rarity`: width of
    the rarest group of tokens that can be compared minus that of the commonest; None without two.
    """

    step: int
    tokens: int
    layers: int
    by_class: Grouping
    by_frequency: Grouping
    by_domain: Grouping
    rarity: Gap | None = None


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
    sequence = _sequences(found, tokens)
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
                key: reduce_groups(value, ids, len(labels), sequence, ())
                for key, value in quantities.items()
                if layers or key == "loss"
            },
        )
        for name, (ids, labels) in groupings.items()
    }
    rarity = None
    if layers:
        bins, labels = groupings["by_frequency"]
        rarity = _rarity(quantities["width"], bins, labels, reduced["by_frequency"], sequence)
    return TraceGroups(step, tokens, layers, **reduced, rarity=rarity)


def _sequences(found: dict[str, NDArray], tokens: int) -> NDArray[np.int64]:
    if "sequence_T" in found:
        return found["sequence_T"].astype(np.int64)
    if "position_T" in found:
        return sequences_of(found["position_T"])
    return np.zeros(tokens, np.int64)


def _rarity(
    width_T: NDArray,
    bin_T: NDArray,
    labels: tuple[str, ...],
    by_frequency: Grouping,
    sequence_T: NDArray[np.int64],
) -> Gap | None:
    means = by_frequency.means["width"]
    usable = np.flatnonzero((means.tokens >= FEW) & np.isfinite(means.half_width))
    if usable.size < 2:
        return None
    common, rare = int(usable[0]), int(usable[-1])
    return Gap(labels[rare], labels[common], *gap(width_T, bin_T, rare, common, sequence_T))


def gap(
    value_T: NDArray, group_T: NDArray, of: int, minus: int, sequence_T: NDArray
) -> tuple[float, float]:
    """Mean of group `of` minus mean of group `minus`, and half of its 95 % interval.

    Both groups have tokens in the same sequences, whose means rise and fall together, so the
    interval is that of the difference. As in `reduce_groups`, sequences are the independent draws:
    with r_s = sum over tokens of s in `of` of (y_t - m_of) / n_of, minus the same of the other,

        half_width = t(0.975, S-1) * sqrt(S / (S-1) * sum_s r_s^2)

    S counts sequences with a token in either. Values that are not finite are left out. NaN where a
    group is empty; half_width is NaN with S = 1.
    """
    value = np.asarray(value_T, np.float64)
    group = np.asarray(group_T)
    kept = np.isfinite(value) & ((group == of) | (group == minus))
    value, first = value[kept], group[kept] == of
    if not first.any() or first.all():
        return math.nan, math.nan
    sequence = np.unique(np.asarray(sequence_T)[kept], return_inverse=True)[1]
    mean_of, mean_minus = float(value[first].mean()), float(value[~first].mean())
    share = np.where(first, (value - mean_of) / first.sum(), -(value - mean_minus) / (~first).sum())
    part_S = np.bincount(sequence, share)
    count = part_S.size
    if count < 2:
        return mean_of - mean_minus, math.nan
    error = math.sqrt(count / (count - 1) * float(np.square(part_S).sum()))
    return mean_of - mean_minus, t_quantile(count - 1) * error


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
