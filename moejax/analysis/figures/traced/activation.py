"""How often each language uses each expert of each layer, and which experts are whose."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from moejax.analysis.charts import scales
from moejax.analysis.charts.spec import Chart, Grid, Maps, series
from moejax.analysis.evidence import Evidence, Traced
from moejax.analysis.figures.base import Figure, Row, missing
from moejax.analysis.figures.traced.common import about, by_layer
from moejax.analysis.figures.traced.language import has_languages
from moejax.analysis.languages import in_order
from moejax.analysis.routing.frequency import KINDS, Usage, cross_layer_frequency, usage
from moejax.analysis.routing.specialisation import specialisation

TITLE = "Activation frequency by language"
CAPTION = (
    "Share of a language's tokens that use each expert (layer by expert; in each row the experts "
    "stand by their frequency over all languages, so a column is a rank and not a name). Pick two "
    "languages to see where they differ. An expert counts as used by a language from twice the "
    "even share k/E: shared by all, by several, specific to one, or unused (at most half of k/E in "
    "all). The CSV has every expert, with 95 % intervals over sequences. Where a trace has "
    "probabilities, a tab shows how many experts each layer gets when they are chosen over all "
    "layers at once."
)
RUNS, EXPERTS = 4, 96
HEADER: Row = (
    "run", "layer", "language", "expert", "frequency", "half_width_95", "even", "kind",
    "languages_high", "cross_layer_frequency",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Frequencies:
    """Of one run: languages in the order of their families, and their frequencies.

    Attributes:
      names: of the G languages.
      share_LGE, half_LGE: frequencies and their intervals; NaN where there is none.
      even_L: k/E.
      use: which experts are whose.
      cross_LGE: chosen over all layers; None without probabilities.
    """

    names: tuple[str, ...]
    share_LGE: NDArray[np.float64]
    half_LGE: NDArray[np.float64]
    even_L: NDArray[np.float64]
    use: Usage
    cross_LGE: NDArray[np.float64] | None


def frequencies(one: Traced, *, cross: bool = False) -> Frequencies:
    """The frequencies of a run's languages.

    Args:
      one: a trace of two languages or more.
      cross: also those of a choice over all layers.
    """
    trace = one.trace
    assert trace.language_T is not None
    present = np.unique(trace.language_T)
    names = [one.labels.language(int(i)) for i in present]
    order = in_order(names)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    label_T = rank[np.searchsorted(present, trace.language_T)]
    found = specialisation(trace.expert_LTK, trace.exists_LE, label_T, len(names), one.sequence_T)
    crossed = None
    if cross and trace.probs_LTE is not None and trace.active_LT is not None:
        active, most = float(trace.active_LT.mean()), trace.exists_LE.sum() / trace.num_layers
        active = active if active < most else most / 5
        crossed = cross_layer_frequency(
            trace.probs_LTE, trace.exists_LE, label_T, len(names), active
        )
    return Frequencies(
        tuple(names[i] for i in order),
        found.share,
        found.half_width,
        found.chance_uniform,
        usage(found.share, trace.exists_LE),
        crossed,
    )


def build(evidence: Evidence) -> Figure:
    """Heat maps per run and language, and the kinds of experts by layer."""
    traced = [one for one in evidence.traced(has_languages) if one.trace.num_experts > 1]
    if not traced:
        return missing("activation", TITLE, "no trace is of two languages or more")
    shown = traced[:RUNS]
    found = [frequencies(one, cross=True) for one in shown]
    rows: list[Row] = [HEADER]
    grids: list[Grid] = []
    for one, of in zip(shown, found, strict=True):
        rows += _rows(one, of)
        grids += _grids(one, of)
    maps = Maps(
        key="activation",
        title="Frequency",
        alt=f"Activation frequencies of {len(grids)} runs and languages.",
        x="expert, most frequent first",
        y="layer",
        quantity="frequency",
        scale=scales.of_values(np.concatenate([grid.value_RC.ravel() for grid in grids])),
        grids=tuple(grids),
        difference=scales.difference((0.05, 0.1, 0.2, 0.4)),
    )
    kinds = tuple(_kinds(one, of) for one, of in zip(shown, found, strict=True))
    tabs: list[tuple[str, tuple[Chart | Maps, ...]]] = [("maps", (maps,)), ("experts", kinds)]
    crossed = tuple(
        _crossed(one, of) for one, of in zip(shown, found, strict=True) if of.cross_LGE is not None
    )
    if crossed:
        tabs.append(("over all layers", crossed))
    cut = "" if len(shown) == len(traced) else f" The first {RUNS} runs are shown, CSV included."
    return Figure(
        "activation", TITLE, CAPTION + about(traced, evidence) + cut, tuple(rows), tuple(tabs)
    )


def _rows(one: Traced, of: Frequencies) -> list[Row]:
    layers = one.trace.layers_L.tolist()
    rows: list[Row] = []
    for i, g, e in zip(*np.nonzero(np.isfinite(of.share_LGE)), strict=True):
        kind = KINDS[of.use.kind_LE[i, e]]
        cross = float(of.cross_LGE[i, g, e]) if of.cross_LGE is not None else float("nan")
        rows.append(
            (
                one.name, layers[i], of.names[g], int(e), float(of.share_LGE[i, g, e]),
                float(of.half_LGE[i, g, e]), float(of.even_L[i]), kind,
                int(of.use.languages_LE[i, e]), cross,
            )
        )  # fmt: skip
    return rows


def _grids(one: Traced, of: Frequencies) -> list[Grid]:
    layers = one.trace.layers_L.tolist()
    # An expert that a layer lacks is NaN and sorts last.
    overall_LE = np.nan_to_num(np.where(one.trace.exists_LE, of.share_LGE.mean(1), -1.0), nan=-1.0)
    order_LE = np.argsort(-overall_LE, axis=1, kind="stable")[:, :EXPERTS]
    columns = tuple(str(rank) for rank in range(order_LE.shape[1]))
    grids = []
    for g, name in enumerate(of.names):
        value_LE = np.take_along_axis(of.share_LGE[:, g], order_LE, axis=1)
        top = float(np.nanmax(value_LE, initial=0.0))
        alt = (
            f"Activation frequency of {order_LE.shape[1]} experts in {len(layers)} layers of "
            f"{one.name} for {name}; highest {top:.2f}."
        )
        note = f"even {float(of.even_L.mean()):.2f}"
        label = f"{one.name}, {name}"
        grids.append(Grid(label, value_LE, tuple(map(str, layers)), columns, alt, note))
    return grids


def _kinds(one: Traced, of: Frequencies) -> Chart:
    counts = of.use.counts()
    lines = [
        series(name, look, one.trace.layers_L, counts[:, look]) for look, name in enumerate(KINDS)
    ]
    return by_layer(f"activation-kinds-{one.view.index}", one.name, "experts", lines, low=0.0)


def _crossed(one: Traced, of: Frequencies) -> Chart:
    assert of.cross_LGE is not None
    lines = [
        series(name, g % 28, one.trace.layers_L, np.nansum(of.cross_LGE[:, g], -1))
        for g, name in enumerate(of.names)
    ]
    label = "experts per token"
    return by_layer(f"activation-cross-{one.view.index}", one.name, label, lines, low=0.0)
