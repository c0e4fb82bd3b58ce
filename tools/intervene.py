"""Interventions: what a checkpoint loses without some of its experts; docs/interventions.md.

usage:
  python -m tools.intervene --run=DIR --what=disable_top|shared_for_routed|k|p|drop_one
      [--values=...] [--when=before|after] [--norenormalise] [--layers=all|each|1,3]
      [--corpus=SPEC] [--tokens=N] [--step=N|all] [--out=DIR]

Writes RUN/interventions/WHAT/CORPUS/STEP.json and prints its table: losses in nats per token, their
differences from the untouched model, and the experts and hidden units that a token then uses.

examples:
  python -m tools.intervene --run=runs/quickstart/top_k --what=disable_top --values=0,1,2,4
  python -m tools.intervene --run=runs/quickstart/top_p --what=p --values=0.2,0.4,0.6,0.8
  python -m tools.intervene --run=runs/quickstart/top_p --what=drop_one --layers=1
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from moejax.config import ConfigError
from moejax.probe import open_run, open_text
from moejax.probe.corpus import VALIDATION
from moejax.probe.interventions import KINDS, Intervention, parse_values, write_sweeps
from moejax.probe.opened import run_steps
from moejax.train.cli import enable_compile_cache, launch

_RUN = flags.DEFINE_string("run", "", "Run directory whose checkpoint is changed.")
_WHAT = flags.DEFINE_string("what", "", f"The intervention: {', '.join(KINDS)}.")
_VALUES = flags.DEFINE_string(
    "values",
    "",
    "What is swept, comma-separated. disable_top: experts per token, or a share of them like "
    "1/16; shared_for_routed: routed experts added; k; p; drop_one: numbers of experts. Default: a "
    "range that fits the model.",
)
_WHEN = flags.DEFINE_string(
    "when",
    "before",
    "Experts are taken away before the router chooses (others take their place), or after it "
    "(their slots stay empty).",
)
_RENORMALISE = flags.DEFINE_bool(
    "renormalise",
    True,
    "Give the others the weight of experts that are taken away; no: that weight is lost.",
)
_LAYERS = flags.DEFINE_string(
    "layers", "all", "MoE layers that change: all together, each alone, or numbers of some."
)
_CORPUS = flags.DEFINE_string("corpus", VALIDATION, "Text, as for tools.trace.")
_STEP = flags.DEFINE_string(
    "step", "", "Checkpoint; `all` for all that are kept; default: the newest whole one."
)
_TOKENS = flags.DEFINE_integer("tokens", 16384, "Tokens of the text at most.")
_DEVICES = flags.DEFINE_integer("devices", 1, "Devices that the parameters are spread over.")
_IMPORT = flags.DEFINE_multi_string(
    "import", [], "Your own .py file or module that registers components; may be repeated."
)
_OUT = flags.DEFINE_string("out", "", "Folder to write to; default: RUN/interventions/WHAT/CORPUS.")


def main(argv: list[str]) -> None:
    """Sweeps an intervention."""
    del argv
    if not _RUN.value:
        raise ConfigError("--run: is required, e.g. --run=runs/quickstart/top_k")
    if not _WHAT.value:
        raise ConfigError(f"--what: is required, one of {', '.join(KINDS)}")
    intervention = Intervention(
        what=_WHAT.value,
        values=parse_values(_WHAT.value, _VALUES.value),
        when=_WHEN.value,
        renormalise=_RENORMALISE.value,
        layers=_LAYERS.value,
    )
    run = open_run(_RUN.value, devices=_DEVICES.value)
    enable_compile_cache(run.experiment.data.cache_path / "xla")
    write_sweeps(
        run,
        open_text(run, _CORPUS.value),
        run_steps(run, _STEP.value),
        intervention,
        _TOKENS.value,
        Path(_OUT.value) if _OUT.value else None,
        lambda line: print(line, flush=True),
    )


if __name__ == "__main__":
    launch(main)
