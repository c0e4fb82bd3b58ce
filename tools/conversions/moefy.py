"""MoEfication: a dense run's FFNs cut into small experts; docs/moefy.md.

usage:
  python -m tools.convert moefy --from=RUN --to=RUN [flags]

examples:
  python -m tools.convert moefy --from=runs/smollm2 --to=runs/oracle --experts=48 --router=oracle
  python -m tools.convert moefy --from=runs/smollm2 --to=runs/mlp --experts=48 --k=12 --router=mlp
  python -m tools.convert moefy --from=runs/dense --to=runs/co --experts=16 --split=coactivation
  python -m tools.trace --run=runs/oracle --corpus='languages?unit=chapter' --probs

With all experts on, the new model is the dense one up to the order of its sums; the command
measures it. Traces of several languages give the report its activation-frequency maps.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from moejax.surgery import CutLayer, Moefying, all_on, moefied_config, moefy
from moejax.surgery.moefication import ROUTERS, ROWS, SPLITS
from moejax.surgery.rundir import TRAIN, agreement, calibration_text, settings, write_converted
from moejax.train.progress import make_progress
from tools.conversions import value
from tools.conversions.common import asked_for, compared, define_common, open_source

DEFAULT = Moefying()


def define_flags() -> None:
    """Flags of this command."""
    define_common()
    flags.DEFINE_integer("experts", DEFAULT.experts, "Experts of each FFN.", lower_bound=1)
    flags.DEFINE_integer(
        "k", DEFAULT.k, "Experts that each token uses; 0: a fifth of them.", lower_bound=0
    )
    flags.DEFINE_enum("split", DEFAULT.split, SPLITS, "Which hidden units go together.")
    flags.DEFINE_enum("rows", DEFAULT.rows, ROWS, "Weights that --split=weights compares.")
    flags.DEFINE_enum("router", DEFAULT.router, ROUTERS, "Who chooses.")
    flags.DEFINE_bool(
        "straight_through", False, "Let later training of the model reach the router."
    )
    flags.DEFINE_integer("epochs", DEFAULT.epochs, "Of the router's fit.", lower_bound=0)
    flags.DEFINE_integer("starts", DEFAULT.starts, "Of the clustering.", lower_bound=1)
    flags.DEFINE_integer(
        "first_dense", DEFAULT.first_dense, "Leading layers to leave dense.", lower_bound=0
    )
    flags.DEFINE_integer("every", DEFAULT.every, "Convert every n-th layer.", lower_bound=1)
    flags.DEFINE_string(
        "corpus", TRAIN, "Text that activations are collected on: `train`, or as tools.trace's."
    )
    flags.DEFINE_integer("tokens", 16384, "Tokens of that text.", lower_bound=1)


def run() -> None:
    """Cuts the FFNs of a run."""
    how = asked_for(Moefying)
    changes = settings(value("set"))
    source, restored, tree = open_source()
    moefied_config(source.experiment.model, how)  # a mistake is said before the text is read
    batches = []
    if how.needs_text:
        batches = calibration_text(source, value("corpus"), value("tokens"), value("seed"))
    progress = make_progress(5.0)
    try:
        model, made, cut = moefy(
            source.experiment.model, tree["params"], how, batches, value("seed"), progress.data
        )
    finally:
        progress.close()
    exact = agreement(source, tree, all_on(model), made)
    print(compared(f"all {how.experts} experts on", exact), flush=True)
    chosen = agreement(source, tree, model, made)
    print(compared(f"{how.active} of {how.experts} experts on", chosen), flush=True)
    del tree
    write_converted(
        value("to"),
        source,
        restored.step,
        model,
        made,
        kind="moefy",
        seed=value("seed"),
        options=how,
        record={
            "text": {"corpus": value("corpus"), "tokens": value("tokens")} if batches else None,
            "all_on": dataclasses.asdict(exact),
            "chosen": dataclasses.asdict(chosen),
            "layers": [_row(layer) for layer in cut],
        },
        arrays={
            "layers_L": np.asarray([layer.layer for layer in cut], np.int32),
            "expert_LF": np.stack([layer.partition.expert_F for layer in cut]).astype(np.int32),
        },
        changes=changes,
        argv=sys.orig_argv,
    )
    print(f"step {restored.step} of {source.root} cut: {Path(value('to')).resolve()}")


def _row(layer: CutLayer) -> dict[str, Any]:
    fit = None if layer.fit is None else dataclasses.asdict(layer.fit)
    return {"layer": layer.layer, "spread": list(layer.partition.spread), "router": fit}
