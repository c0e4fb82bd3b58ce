"""Train four small language models on the same text and compare them in one report.

usage:
  python -m experiments.quickstart [--out=runs/quickstart] [--quick]

Dense, top-k, top-p and heterogeneous top-p models of about equal active FLOPs, one after the other
in one process. Kill it whenever you like: the same command finishes the same job with the same
numbers. Exit codes as in experiments.train.
"""

from __future__ import annotations

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

KINDS = ("dense", "top_k", "top_p", "hetero_top_p")

_OUT = flags.DEFINE_string(
    "out", "", "Directory for runs and report; default runs/quickstart (or runs/quickstart_quick)."
)
_QUICK = flags.DEFINE_bool("quick", False, "A smoke test: seconds instead of minutes.")


def main(argv: list[str]) -> None:
    """Trains and reports."""
    del argv
    quick = str(_QUICK.value).lower()
    out = Path(_OUT.value or ("runs/quickstart_quick" if _QUICK.value else "runs/quickstart"))
    experiments = {
        kind: build(Experiment, lm.get_config(f"size=nano,moe={kind},quick={quick}"))
        for kind in KINDS
    }
    enable_compile_cache(next(iter(experiments.values())).data.cache_path / "xla")
    progress = make_progress(every_seconds=10.0)
    try:
        directories = run_suite(experiments, out, progress, sys.argv)
        progress.note("writing the report")
    finally:
        progress.close()
    write_report([str(directory) for directory in directories], str(out))
    print((out / "report.html").resolve())


if __name__ == "__main__":
    launch(main)
