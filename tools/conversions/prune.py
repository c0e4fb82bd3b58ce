"""Pruning: a run's experts removed, by how often they are used; docs/pruning.md.

usage:
  python -m tools.convert prune --from=RUN --to=RUN [flags]

examples:
  python -m tools.trace --run=runs/moe --corpus=embedded
  python -m tools.convert prune --from=runs/moe --to=runs/moe_70 --trace=embedded --rate=0.3
  python -m tools.convert prune --from=runs/moe --to=runs/moe_rand --score=random --seed=1
  python -m tools.convert prune --from=runs/oracle --to=runs/half --trace=languages \\
      --rate=0.5 --spread=global --router=all

The new run has fewer experts, in each layer as many as it keeps: its parameters, checkpoints and
FLOPs are those of the smaller model. `python -m tools.prune` measures many such models at once.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
from absl import flags

from moejax.models.metrics import moe_layers
from moejax.surgery.choosing import SCORES, Pruning, choose
from moejax.surgery.pruning import ROUTERS_AFTER, prune
from moejax.surgery.ranking import SPREADS
from moejax.surgery.rundir import agreement, settings, write_converted
from tools.conversions import value
from tools.conversions.common import asked_for, compared, define_common, open_source

DEFAULT = Pruning()


def define_flags() -> None:
    """Flags of this command."""
    define_common()
    flags.DEFINE_float("rate", DEFAULT.rate, "Share of the experts that go.")
    flags.DEFINE_enum("score", DEFAULT.score, SCORES, "What they are chosen by.")
    flags.DEFINE_enum(
        "spread", DEFAULT.spread, tuple(SPREADS), "How the rate is spread over the layers."
    )
    flags.DEFINE_integer("least", DEFAULT.least, "Experts that each layer keeps at least.")
    flags.DEFINE_string(
        "trace",
        DEFAULT.trace,
        "Folder of the trace that says how often experts are used (RUN/trace/FOLDER); default: the "
        "trainer's own.",
    )
    flags.DEFINE_string("language", DEFAULT.language, "Tokens of this language only.")
    flags.DEFINE_enum(
        "router", DEFAULT.router, tuple(ROUTERS_AFTER), "What becomes of the routers."
    )


def run() -> None:
    """Prunes a run."""
    how = asked_for(Pruning)
    changes = settings(value("set"))
    source, restored, tree = open_source()
    config = source.experiment.model
    keep_LE, score_LE = choose(source.root, restored.step, config, tree, how, value("seed"))
    layers = moe_layers(source.model)
    kept = {
        layer: np.flatnonzero(keep_E).tolist()
        for layer, keep_E in zip(layers, keep_LE, strict=True)
    }
    model, made = prune(config, tree, kept, how.router)
    found = agreement(source, tree, model, made)
    print(compared("pruned", found), flush=True)
    del tree
    total = sum(moe.experts for moe in config.plan() if moe is not None)
    write_converted(
        value("to"),
        source,
        restored.step,
        model,
        made,
        kind="prune",
        seed=value("seed"),
        options=how,
        record={
            "agreement": dataclasses.asdict(found),
            "kept": {str(layer): experts for layer, experts in kept.items()},
        },
        arrays={"layers_L": np.array(layers), "keep_LE": keep_LE, "score_LE": score_LE},
        changes=changes,
        argv=sys.orig_argv,
    )
    print(
        f"step {restored.step} of {source.root}: {int(keep_LE.sum())} of {total} experts kept: "
        f"{Path(value('to')).resolve()}"
    )
