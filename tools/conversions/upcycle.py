"""Sparse upcycling: a dense run's FFNs copied into experts; docs/upcycling.md.

usage:
  python -m tools.convert upcycle --from=RUN --to=RUN [flags]

examples:
  python -m tools.convert upcycle --from=runs/dense --to=runs/upcycled --copies=8 --k=2
  python -m tools.convert upcycle --from=runs/dense --to=runs/fine --copies=8 --k=2 --pieces=4
  python -m tools.convert upcycle --from=runs/dense --to=runs/half --every=2 --set=train.steps=2000
  python -m experiments.train --workdir=runs/upcycled

The new run is the dense model at its first step, but for --noise, raw gates or --scale=none; the
command says how nearly. The last command trains on from it, with fresh optimizer state.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from absl import flags

from moejax.surgery import Upcycling, upcycle, upcycled_config
from moejax.surgery.rundir import agreement, settings, write_converted
from moejax.surgery.upcycling import SCALES
from tools.conversions import value
from tools.conversions.common import asked_for, compared, define_common, open_source

DEFAULT = Upcycling()


def define_flags() -> None:
    """Flags of this command."""
    define_common()
    flags.DEFINE_integer("copies", DEFAULT.copies, "Copies of each FFN.", lower_bound=1)
    flags.DEFINE_integer("k", DEFAULT.k, "Copies that each token uses.", lower_bound=1)
    flags.DEFINE_integer(
        "pieces", DEFAULT.pieces, "Experts that each copy is cut into (granularity).", lower_bound=1
    )
    flags.DEFINE_bool(
        "renormalise", DEFAULT.renormalise, "Divide the chosen probabilities by their sum."
    )
    flags.DEFINE_enum(
        "scale", DEFAULT.scale, SCALES, "Where the factor goes that makes the first output right."
    )
    flags.DEFINE_float(
        "noise", DEFAULT.noise, "Noise on every copy, relative to the weights.", lower_bound=0.0
    )
    flags.DEFINE_float(
        "router_std", DEFAULT.router_std, "Of the router's first weights.", lower_bound=0.0
    )
    flags.DEFINE_integer(
        "first_dense", DEFAULT.first_dense, "Leading layers to leave dense.", lower_bound=0
    )
    flags.DEFINE_integer("every", DEFAULT.every, "Convert every n-th layer.", lower_bound=1)


def run() -> None:
    """Upcycles a run."""
    how = asked_for(Upcycling)
    changes = settings(value("set"))
    source, restored, tree = open_source()
    upcycled_config(source.experiment.model, how)
    model, made = upcycle(source.experiment.model, tree["params"], how, value("seed"))
    found = agreement(source, tree, model, made)
    print(compared("at its first step", found), flush=True)
    del tree
    write_converted(
        value("to"),
        source,
        restored.step,
        model,
        made,
        kind="upcycle",
        seed=value("seed"),
        options=how,
        record={"agreement": dataclasses.asdict(found)},
        changes=changes,
        argv=sys.orig_argv,
    )
    print(f"step {restored.step} of {source.root} upcycled: {Path(value('to')).resolve()}")
