"""A recipe: how a base is fine-tuned, whichever it is; `configs/finetune.py` makes it.

With a base it becomes an `Experiment`: the base's model, text and tokenizer, the task beside them,
and a method whose experts are selected and whose size is matched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moejax.config import ConfigError, knob
from moejax.config.compose import check
from moejax.data.knobs import task_data
from moejax.data.tasks.contract import open_task
from moejax.experts.exchange.config import ExchangeConfig
from moejax.finetune.base import Base
from moejax.finetune.counts import matched, trainable_parameters
from moejax.finetune.formats import read_selection
from moejax.finetune.methods import TARGETS, Full, LoRA, MultiLoRA, Partial
from moejax.finetune.sampling import Ids, text_hash
from moejax.finetune.selection import DEFAULT_P, Selection, check_selection, method_of
from moejax.probe.opened import Say
from moejax.sharding.mesh import MeshConfig
from moejax.train import Experiment, TrainConfig
from moejax.train.base import experiment_at
from moejax.train.checkpoint import CheckpointConfig
from moejax.train.evaluate import EvaluationConfig
from moejax.train.log import LogConfig
from moejax.train.optimizer import OptimizerConfig
from moejax.train.schedule import ScheduleConfig
from moejax.train.tuning import FineTune

ESFTS = {"esft_gate": "gate", "esft_token": "token", "esft_random": "gate"}
"""Methods that select experts, and by which score (a random control has its counts)."""
KINDS = (*ESFTS, "lora", "multilora", "partial", "full")
NO_TASK = "none"
SIZED = ("lora", "multilora", "partial")
"""Methods whose size can be matched to another's."""
LOW_RANK = ("lora", "multilora")
OWN_KNOBS = {
    "samples": tuple(ESFTS),
    "length": tuple(ESFTS),
    "rank": LOW_RANK,
    "alpha": LOW_RANK,
    "targets": LOW_RANK,
    "per_expert": LOW_RANK,
    "modules": ("multilora",),
    "top_layers": ("partial",),
}
"""Knobs that only some methods have; of others they must stay at their defaults."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is trained, on what, for how long; what is not here is the base's."""

    method: str = knob("esft_gate", doc="what is trained", choices=KINDS)
    task: str = knob("law", doc="a task (docs/tasks.md), or `none`: the base's own text")
    share: float = knob(
        0.5, doc="part of the rows that is the base's text; 0.5 is 1 : 1", low=0.0, high=1.0,
        high_open=True,
    )  # fmt: skip
    weigh: str = knob("parts", doc="as config.data.general.weigh", choices=("parts", "tokens"))
    p: float = knob(
        0.0, doc="threshold of the selection; 0: as published (gate 0.1, token 0.2)", low=0.0,
        high=1.0,
    )  # fmt: skip
    samples: int = knob(32, unit="windows", doc="scored for the selection", low=1)
    length: int = knob(4096, unit="tokens", doc="of a window, bounded by the base's", low=1)
    shared_experts: bool = knob(False, doc="of ESFT: also the shared experts")
    router: bool = knob(False, doc="of ESFT: also routers and gates")
    attention: bool = knob(False, doc="of ESFT: also attention")
    norms: bool = knob(False, doc="of ESFT: also norms")
    rank: int = knob(8, unit="dimensions", doc="of lora and multilora", low=1)
    alpha: float = knob(0.0, doc="updates are scaled by alpha / rank; 0: twice the rank", low=0.0)
    modules: int = knob(3, unit="modules", doc="of multilora", low=1)
    targets: tuple[str, ...] = knob(
        (), doc="roles with low-rank updates; () = all", choices=TARGETS
    )
    per_expert: bool = knob(True, doc="low-rank factors of their own for every expert")
    top_layers: int = knob(1, unit="layers", doc="of partial", low=1)
    match: str = knob(
        "", doc="expert_config.json, or run, that lora, multilora and partial train as much as"
    )
    seed: int = knob(0, doc="order of the data, and of what is drawn", low=0, high=2**31 - 1)
    seq_len: int = knob(0, unit="tokens", doc="length of a window; 0: the base's", low=0)
    keep_best: bool = knob(True, doc="the checkpoint with the best validation loss is the result")
    patience: int = knob(0, unit="evaluations", doc="stop after so many no better ones", low=0)
    optimizer: OptimizerConfig = knob(OptimizerConfig())
    schedule: ScheduleConfig = knob(ScheduleConfig(kind="constant", warmup=0))
    train: TrainConfig = knob(TrainConfig(batch_size=32, steps=200))
    evaluation: EvaluationConfig = knob(EvaluationConfig(every="10%", at_start=True))
    checkpoint: CheckpointConfig = knob(CheckpointConfig(every="20%"))
    log: LogConfig = knob(LogConfig())
    mesh: MeshConfig = knob(MeshConfig())
    exchange: ExchangeConfig = knob(ExchangeConfig())

    def validate(self, path: str) -> None:
        """Raises ConfigError where a knob belongs to another method."""
        if self.match and self.method not in SIZED:
            raise ConfigError(
                f"{path}.match={self.match!r}: {self.method} trains what it is told to; only "
                f"{', '.join(SIZED)} have a size to choose"
            )
        for name in ("p", "shared_experts", "router", "attention", "norms"):
            if getattr(self, name) and self.method not in ESFTS:
                raise ConfigError(
                    f"{path}.{name}={getattr(self, name)}: belongs to ESFT, the method is "
                    f"{self.method}; nearest valid: esft_gate"
                )
        usual = Recipe()
        for name, methods in OWN_KNOBS.items():
            own, default = getattr(self, name), getattr(usual, name)
            if own != default and self.method not in methods:
                raise ConfigError(
                    f"{path}.{name}={own!r}: belongs to {', '.join(methods)}, the method is "
                    f"{self.method}; nearest valid value {default!r}"
                )
        size = "top_layers" if self.method == "partial" else "rank"
        if self.match and getattr(self, size) != getattr(usual, size):
            raise ConfigError(
                f"{path}.{size}={getattr(self, size)}: {path}.match chooses it; nearest valid: one "
                "of the two"
            )
        if self.task == NO_TASK and self.share != usual.share:
            raise ConfigError(
                f"{path}.share={self.share:g}: task={NO_TASK} trains on the base's text alone; "
                f"nearest valid value {usual.share:g}"
            )

    @property
    def selects(self) -> bool:
        """Whether the method needs a selection of experts."""
        return self.method in ESFTS

    @property
    def score(self) -> str:
        """What experts are selected by."""
        return ESFTS[self.method]

    @property
    def label(self) -> str:
        """Method and task, fit for a folder."""
        return f"{self.method}-{NO_TASK if self.task == NO_TASK else open_task(self.task).name}"


def experiment_of(
    recipe: Recipe, base: Base, selection: Selection | None = None, say: Say = print
) -> Experiment:
    """The run that a recipe makes of a base.

    Args:
      recipe: checked.
      base: what it starts from.
      selection: of experts, for a method that `selects`.
      say: told where a size could not be matched.

    Raises:
      ConfigError: the selection does not fit the base, there is no such task, or the run is
        impossible.
    """
    theirs = base.experiment
    data = theirs.data
    if recipe.task != NO_TASK:
        data = task_data(data, recipe.task, share=recipe.share, weigh=recipe.weigh)
    if recipe.seq_len:
        data = dataclasses.replace(data, seq_len=recipe.seq_len)
    p = selection.p if selection is not None else 0.0
    experiment = dataclasses.replace(
        theirs,
        name=f"{theirs.name}-{recipe.label}",
        seed=recipe.seed,
        data=data,
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        train=recipe.train,
        evaluation=recipe.evaluation,
        checkpoint=recipe.checkpoint,
        log=recipe.log,
        mesh=recipe.mesh,
        exchange=recipe.exchange,
        finetune=FineTune(
            base=str(base.run.root.resolve()),
            base_step=base.step,
            base_hash=base.hash,
            method=_method(recipe, base, selection, say),
            label=recipe.method,
            task="" if recipe.task == NO_TASK else open_task(recipe.task).spec,
            p=p,
            keep_best=recipe.keep_best,
            patience=recipe.patience,
        ),
    )
    check(experiment)
    return experiment


def _method(recipe: Recipe, base: Base, selection: Selection | None, say: Say) -> Any:
    if recipe.selects:
        assert selection is not None
        check_selection(selection, base.run.model, base.hash)
        chosen = method_of(selection)
        return dataclasses.replace(
            chosen,
            shared_experts=chosen.shared_experts or recipe.shared_experts,
            router=chosen.router or recipe.router,
            attention=chosen.attention or recipe.attention,
            norms=chosen.norms or recipe.norms,
        )
    if selection is not None:
        raise ConfigError(
            f"--selection: is for ESFT, the method is {recipe.method}; nearest valid: esft_gate"
        )
    if recipe.method == "full":
        return Full()
    method: Any = Partial(top_layers=recipe.top_layers)
    if recipe.method != "partial":
        method = LoRA() if recipe.method == "lora" else MultiLoRA(modules=recipe.modules)
        method = dataclasses.replace(
            method, rank=recipe.rank, targets=recipe.targets, per_expert=recipe.per_expert
        )
    if recipe.match:
        method = matched(method, base.experiment.model, trained_by(recipe.match, base), say)
    if recipe.method != "partial":
        method = dataclasses.replace(method, alpha=recipe.alpha or 2.0 * method.rank)
    return method


def trained_by(where: str, base: Base) -> int:
    """Trainable parameters of a selection, or of a fine-tuned run, in a base's model.

    Raises:
      ConfigError: neither is there, it does not fit the model, or the selection was made for
        another base.
    """
    model = base.experiment.model
    path = Path(where).expanduser()
    if path.is_dir() and (path / "config.json").exists():
        finetune = experiment_at(path).finetune
        if finetune is None:
            raise ConfigError(f"config.match={where}: is no fine-tuned run")
        if finetune.base_hash != base.hash:
            raise ConfigError(
                f"config.match={where}: was trained from another base: from parameters of hash "
                f"{finetune.base_hash}, and this base has {base.hash}"
            )
        return trainable_parameters(finetune.method, model)
    found = read_selection(path)
    check_selection(found, base.run.model, base.hash, "config.match")
    return trainable_parameters(method_of(found), model)


def scored_with(
    selection: Selection, recipe: Recipe, base_hash: str, found: Sequence[Sequence[Ids]]
) -> bool:
    """Whether a selection on the disk is the one that a recipe would make anew.

    Args:
      selection: it.
      recipe: of an ESFT method.
      base_hash: of the base.
      found: windows that would be scored.
    """
    origin = selection.origin
    random = recipe.method == "esft_random"
    return (
        origin.base_hash == base_hash
        and selection.score == recipe.score
        and selection.p == (recipe.p or DEFAULT_P[recipe.score])
        and origin.text_hash == text_hash(found)
        and selection.seed == (recipe.seed if random else None)
    )
