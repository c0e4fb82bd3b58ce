"""From layer to layer: where the tokens of an expert go next."""

from __future__ import annotations

import numpy as np

from moejax.analysis.charts.spec import Flow, Node
from moejax.analysis.evidence import Evidence, Traced, spread_layers
from moejax.analysis.figures.base import Figure, Row, missing
from moejax.analysis.figures.traced.common import about
from moejax.analysis.routing.paths import common_paths, joint_choices
from moejax.analysis.routing.tables import counts

TITLE = "Paths across layers"
CAPTION = (
    "First choices of tokens from layer to layer; the width of a band is a share of tokens. The "
    "busiest eight experts of a layer are boxes, the rest is one. Wide bands that run through all "
    "layers are routes decided early. The entropy of whole paths, below that of shuffled layers, "
    "says how much layers go together. Four layers of the first four runs."
)
LAYERS, RUNS, BOXES = 4, 4, 8


def build(evidence: Evidence) -> Figure:
    """A flow per run."""
    found = evidence.traced(lambda one: one.trace.num_layers > 1)
    rows: list[Row] = [("run", "from_layer", "from", "to_layer", "to", "share")]
    flows = [flow for one in found[:RUNS] if (flow := _flow(one, rows))]
    if not flows:
        return missing("paths", TITLE, "no traced run has two MoE layers with tokens")
    caption = CAPTION + about(found, evidence)
    return Figure("paths", TITLE, caption, tuple(rows), (("", tuple(flows)),))


def _flow(one: Traced, rows: list[Row]) -> Flow | None:
    trace = one.trace
    layers = spread_layers(trace.num_layers, LAYERS)
    first = trace.expert_LTK[layers][:, :, :1]
    mask = trace.exists_LE[layers]
    joint = joint_choices(first, mask)
    if not np.isfinite(joint).any():
        return None
    nodes: list[Node] = []
    places = []  # per layer: expert -> index of its box
    for column, count_E in enumerate(counts(first, mask)):
        busiest = np.sort(np.argsort(-count_E, kind="stable")[:BOXES])
        place = np.full(count_E.size, len(nodes) + busiest.size)
        for k, e in enumerate(busiest.tolist()):
            place[e] = len(nodes) + k
        nodes += [Node(column, f"{e}", k % 7) for k, e in enumerate(busiest.tolist())]
        nodes.append(Node(column, "others", 6))
        places.append(place)
    links: dict[tuple[int, int], float] = {}
    for column, share_EE in enumerate(np.nan_to_num(joint)):
        for a, b in zip(*np.nonzero(share_EE), strict=True):
            key = int(places[column][a]), int(places[column + 1][b])
            links[key] = links.get(key, 0.0) + float(share_EE[a, b])
    index = [int(trace.layers_L[i]) for i in layers]
    for (a, b), share in sorted(links.items()):
        source, target = nodes[a], nodes[b]
        ends = (index[source.column], source.name, index[target.column], target.name)
        rows.append((one.name, *ends, share))
    whole = common_paths(trace.expert_LTK, trace.exists_LE, layers)
    told = (
        f"entropy of paths {whole.entropy:.2f} nats, {whole.chance_entropy:.2f} if layers knew "
        "nothing of each other"
    )
    return Flow(
        f"paths-{one.view.index}",
        f"{one.name} ({told})",
        f"Flow of first choices through layers {', '.join(map(str, index))} of {one.name}: {told}.",
        tuple(f"layer {i}" for i in index),
        tuple(nodes),
        tuple((a, b, share) for (a, b), share in sorted(links.items())),
    )
