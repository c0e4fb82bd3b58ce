"""Compile the real train step for a TPU pod that is not here, and print what it would need.

usage:
  python -m tools.aot --config=FILE[:ARGUMENTS] --topology=CHIP:SHAPE [--slices=N]
      [--mesh=data=1,fsdp=-1,expert=8] [--json=FILE] [--config.KEY=VALUE ...]
  python -m tools.aot --config=FILE[:ARGUMENTS] --topology=CHIP:SHAPE --search
  python -m tools.aot --run=DIR --topology=CHIP:SHAPE [--mesh=...] ...
  python -m tools.aot --table [--only=NAME,...] [--json=FILE]

examples:
  python -m tools.aot --config=configs/lm.py:size=base,moe=top_k --topology=v5e:4x4 \\
      --mesh=fsdp=4,expert=4 --config.model.compute_dtype=bfloat16 --config.model.remat=full
  python -m tools.aot --config=configs/lm.py:size=base,moe=top_k --topology=v5p:4x4x4 --search
  python -m tools.aot --run=runs/base-esft_gate-law-s0 --topology=v5e:2x2 --mesh=fsdp=4
  python -m tools.aot --table --only=v5e

Needs a CPU and the compiler: pip install "moejax[tpu]". Minutes the first time; then the answer is
in the cache. Exit codes: 0 fits, 1 bug (traceback), 2 wrong use, 5 does not fit or fails a check.
See docs/pods.md.
"""

from __future__ import annotations

import os

# Before jax is imported, which reads most of it once. No device is looked for, and several
# processes may hold libtpu at a time (it locks a file otherwise).
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
os.environ.update(ENVIRONMENT)

# ruff: noqa: E402
import dataclasses
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections.config_flags import config_flags
from rich.console import Console

from configs import lm
from configs.pods import PODS, Pod
from moejax.config import ConfigError, build, write_json
from moejax.sharding.topology import check_compiler, parse_topology
from moejax.train import Experiment
from moejax.train.aot import UnfitError, fit_report, parse_mesh
from moejax.train.aot_print import pod_table, print_ranking, print_report
from moejax.train.aot_report import FORMAT_VERSION, summary_line
from moejax.train.aot_search import search
from moejax.train.base import experiment_at
from moejax.train.cli import launch

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Python file with get_config(arguments); single keys as --config.KEY=VALUE."
)
_RUN = flags.DEFINE_string(
    "run", "", "Run directory whose config is taken instead, e.g. of a fine-tuning."
)
_TOPOLOGY = flags.DEFINE_string("topology", "", "CHIP:SHAPE of one slice, e.g. v5p:8x8x4.")
_SLICES = flags.DEFINE_integer("slices", 1, "Slices on a slow network; `data` must span them.")
_MESH = flags.DEFINE_string("mesh", "", "data=1,fsdp=-1,expert=8 instead of config.mesh.")
_JSON = flags.DEFINE_string("json", "", "Also write the reports there.")
_SEARCH = flags.DEFINE_bool(
    "search", False, "Rank mesh x remat x micro-batch by arithmetic, compile the best three."
)
_TABLE = flags.DEFINE_bool("table", False, "Compile the rows of configs/pods.py; prints Markdown.")
_ONLY = flags.DEFINE_list("only", [], "Rows of the table that have one of these in their name.")
_QUICK = flags.DEFINE_bool("quick", False, "Let the compiler optimise less: a first look.")
_RECOMPILE = flags.DEFINE_bool("recompile", False, "Do not read the cache.")
_IMPORT = flags.DEFINE_multi_string("import", [], "Your own .py file or module; may be repeated.")


def main(argv: list[str]) -> None:
    """Makes the reports that the flags ask for; ends with `UnfitError` if one has a problem."""
    del argv
    # As wide as it must be where the output is read by a program.
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    if _TABLE.value and (_RUN.value or _CONFIG.value is not None):
        raise ConfigError("--table: has its own configs; nearest valid: without --config and --run")
    reports = _table() if _TABLE.value else _one(console)
    if _JSON.value:
        write_json(_JSON.value, {"format_version": FORMAT_VERSION, "reports": reports})
    if _TABLE.value:
        print(pod_table(reports))
    bad = [report for report in reports if report["problems"]]
    if bad and not _SEARCH.value:
        raise UnfitError(f"{summary_line(bad[0])}; {bad[0]['problems'][0]}")


def _one(console: Console) -> list[dict[str, Any]]:
    if (_CONFIG.value is None) == (not _RUN.value):
        raise ConfigError(
            "--config: one of --config and --run is required, e.g. "
            "--config=configs/lm.py:size=base,moe=top_k"
        )
    if not _TOPOLOGY.value:
        raise ConfigError("--topology: is required, e.g. --topology=v5e:4x4")
    topology = parse_topology(_TOPOLOGY.value, _SLICES.value)
    if _RUN.value:
        experiment = experiment_at(Path(_RUN.value).expanduser())
    else:
        experiment = build(Experiment, _CONFIG.value)
    options = {"quick": _QUICK.value, "recompile": _RECOMPILE.value}
    if _SEARCH.value:
        check_compiler(topology)
        ranking = search(experiment, topology)
        print_ranking(ranking, console)
        if experiment.finetune is not None:
            console.print("note    estimates are those of training everything")
        chosen = [candidate.apply(experiment) for candidate in ranking[:3]]
        reports = [fit_report(one, topology, **options) for one in chosen]
    else:
        path = "--mesh" if _MESH.value else "config.mesh"
        if _MESH.value:
            experiment = dataclasses.replace(experiment, mesh=parse_mesh(_MESH.value))
        reports = [fit_report(experiment, topology, path=path, **options)]
    for report in reports:
        print_report(report, console)
    return reports


def _table() -> list[dict[str, Any]]:
    rows = [pod for pod in PODS if not _ONLY.value or any(map(_named(pod).count, _ONLY.value))]
    if not rows:
        known = ", ".join(map(_named, PODS))
        raise ConfigError(f"--only={','.join(_ONLY.value)}: no row of configs/pods.py; {known}")
    reports = []
    for pod in rows:
        topology = parse_topology(pod.topology, pod.slices)
        config = lm.get_config(pod.config)
        config.update_from_flattened_dict(pod.set)
        experiment = build(Experiment, config)
        experiment = dataclasses.replace(experiment, mesh=parse_mesh(pod.mesh, "configs/pods.py"))
        options = {"quick": _QUICK.value, "recompile": _RECOMPILE.value}
        reports.append(fit_report(experiment, topology, path="configs/pods.py", **options))
        print(summary_line(reports[-1]), file=sys.stderr, flush=True)
    return reports


def _named(pod: Pod) -> str:
    return f"{pod.config} {pod.topology}"


if __name__ == "__main__":
    launch(main)
