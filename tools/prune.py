"""What a model loses with its experts: frequency against random and magnitude; docs/pruning.md.

usage:
  python -m tools.prune --run=DIR [--corpus=SPEC] [--tokens=N] [--rates=10%,20%,...] [--by=each]
      [--scores=frequency,random,magnitude] [--spreads=uniform,global] [--router=remove|keep|all]

Writes RUN/pruning/ROUTER/CORPUS/STEP.json, which tools.evaluate makes a section of its report of,
and prints its table: perplexity of held-out documents with 95 % intervals, the change of the loss,
parameters and FLOPs of the model that is left. `tools.convert prune` makes a run of one row.

examples:
  python -m tools.prune --run=runs/moe
  python -m tools.prune --run=runs/oracle --corpus='languages?unit=chapter' --by=each --router=all
  python -m tools.prune --run=runs/moe --rates=50% --timed
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from moejax.config import ConfigError
from moejax.probe import open_run, open_text
from moejax.probe.corpus import VALIDATION
from moejax.probe.opened import run_steps
from moejax.surgery.pruning import ROUTERS_AFTER
from moejax.surgery.ranking import SPREADS
from moejax.surgery.study import EACH, POOLED, SCORES, Plan, parse_rates, write_study_of
from moejax.train.cli import enable_compile_cache, launch

_DEFAULT = Plan()
_RUN = flags.DEFINE_string("run", "", "Run directory whose checkpoint is studied.")
_CORPUS = flags.DEFINE_string("corpus", VALIDATION, "Text, as for tools.trace.")
_TOKENS = flags.DEFINE_integer("tokens", 65536, "Tokens of the text at most; half are scored.")
_RATES = flags.DEFINE_list("rates", ["10%", "20%", "30%", "40%", "50%"], "Shares that go.")
_SCORES = flags.DEFINE_list("scores", list(SCORES), "What experts are chosen by.")
_SPREADS = flags.DEFINE_list(
    "spreads",
    list(_DEFAULT.spreads),
    f"How a rate is spread over layers: {', '.join(SPREADS)}.",
)
_BY = flags.DEFINE_enum(
    "by", POOLED, (POOLED, EACH), "Frequencies of all languages together, or also of each."
)
_SEEDS = flags.DEFINE_integer("seeds", _DEFAULT.seeds, "Draws of random.", lower_bound=1)
_ROUTER = flags.DEFINE_enum(
    "router", _DEFAULT.router, tuple(ROUTERS_AFTER), "What becomes of the routers."
)
_LEAST = flags.DEFINE_integer("least", 1, "Experts that each layer keeps at least.")
_SLOTS = flags.DEFINE_integer(
    "slots", 0, "Count this many of a token's experts for frequencies, best first; 0: all."
)
_TIMED = flags.DEFINE_bool("timed", False, "Also remove the experts, and time what is left.")
_STEP = flags.DEFINE_string("step", "", "Checkpoint; default: the newest whole one.")
_IMPORT = flags.DEFINE_multi_string(
    "import", [], "Your own .py file or module that registers components; may be repeated."
)
_OUT = flags.DEFINE_string("out", "", "Folder to write to; default: RUN/pruning/ROUTER/CORPUS.")


def main(argv: list[str]) -> None:
    """Studies the pruning of a run."""
    del argv
    if not _RUN.value:
        raise ConfigError("--run: is required, e.g. --run=runs/quickstart/top_k")
    if _STEP.value == "all":
        raise ConfigError("--step=all: one checkpoint is studied; nearest valid: no --step")
    plan = Plan(
        rates=parse_rates(_RATES.value),
        scores=tuple(_SCORES.value),
        spreads=tuple(_SPREADS.value),
        by=_BY.value,
        seeds=_SEEDS.value,
        router=_ROUTER.value,
        least=_LEAST.value,
        timed=_TIMED.value,
        slots=_SLOTS.value,
    )
    run = open_run(_RUN.value)
    enable_compile_cache(run.experiment.data.cache_path / "xla")
    (step,) = run_steps(run, _STEP.value)
    write_study_of(
        run,
        open_text(run, _CORPUS.value),
        step,
        plan,
        _TOKENS.value,
        Path(_OUT.value) if _OUT.value else None,
        lambda line: print(line, flush=True),
    )


if __name__ == "__main__":
    launch(main)
