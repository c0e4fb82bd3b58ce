"""Train all five kinds of model at size tiny: the picture of the README.

usage:
  python -m experiments.study [--out=runs/study] [--size=tiny] [--length='1.5e6 tokens'] [--seeds=1]
                              [--quick]

Takes hours; kill it and run it again as often as you like. A later call with more seeds keeps the
runs that are there.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from absl import flags

from configs import lm
from moejax.analysis.report import write_report
from moejax.config import build
from moejax.train import Experiment
from moejax.train.cli import enable_compile_cache, launch
from moejax.train.progress import make_progress
from moejax.train.suite import run_suite

KINDS = ("dense", "top_k", "top_p", "hetero_top_k", "hetero_top_p")

_OUT = flags.DEFINE_string("out", "runs/study", "Directory for runs and report.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Seeds per kind.", lower_bound=1)
_LENGTH = flags.DEFINE_string("length", "1.5e6 tokens", "Steps or tokens of each run.")
_SIZE = flags.DEFINE_string("size", "tiny", "Size of the models.")
_QUICK = flags.DEFINE_bool("quick", False, "A smoke test: seconds instead of hours.")


def main(argv: list[str]) -> None:
    """Trains and reports. Seeds are the outer loop, so that an early stop still compares kinds."""
    del argv
    experiments = {}
    for seed in range(_SEEDS.value):
        for kind in KINDS:
            argument = f"size={_SIZE.value},moe={kind},quick={str(_QUICK.value).lower()}"
            experiment = build(Experiment, lm.get_config(argument))
            name = f"{kind}_seed{seed}"
            train = experiment.train
            if _LENGTH.present or not _QUICK.value:
                train = dataclasses.replace(train, steps=_LENGTH.value)
            experiments[name] = dataclasses.replace(experiment, name=name, seed=seed, train=train)
    enable_compile_cache(next(iter(experiments.values())).data.cache_path / "xla")
    out = Path(_OUT.value)
    progress = make_progress(every_seconds=60.0)
    try:
        directories = run_suite(experiments, out, progress, sys.argv)
        progress.note("writing the report")
    finally:
        progress.close()
    write_report([str(directory) for directory in directories], str(out))
    print((out / "report.html").resolve())


if __name__ == "__main__":
    launch(main)
