"""Which experts are trained: the smallest prefix of the scores that reaches p, and its controls.

Plain Python on what a summary holds. The rule is that of the released configs (methods.md D.5):
scores rounded to 4 decimals, descending, of equals the lower id first, and the expert that crosses
p included. Sums are exact, so that .1 + .7 reaches .8.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from moejax.config import ConfigError
from moejax.finetune.methods import ESFT, check_experts
from moejax.finetune.scores import DIGITS, GATE, TOKEN, Origin, Table
from moejax.models import ModelConfig, Transformer

Experts = Mapping[int, Sequence[int]]
"""Chosen experts by layer of the model, best first."""

DEFAULT_P = {GATE: 0.1, TOKEN: 0.2}
"""ESFT-Gate and ESFT-Token, as published."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """An `expert_config`: what ESFT trains.

    Attributes:
      experts: routed experts by layer.
      shared_experts, non_expert_modules: whether those are trained, too.
      origin: of the scores; of several tasks the first, `task` joined by `+`.
      score, p: of the choice; "" and 0: not known. Of a random one: what it has the counts of.
      seed: of a random choice; None: by scores.
    """

    experts: Experts
    shared_experts: bool = False
    non_expert_modules: bool = False
    origin: Origin = dataclasses.field(default_factory=Origin)
    score: str = ""
    p: float = 0.0
    seed: int | None = None

    @property
    def count(self) -> int:
        """Experts that are trained, over all layers."""
        return sum(len(chosen) for chosen in self.experts.values())


def smallest_prefix(scores: Mapping[int, float], p: float) -> tuple[int, ...]:
    """Experts of a layer, best first, until their scores add up to p; all where they never do.

    Raises:
      ConfigError: p is outside (0, 1], or a score is not finite.
    """
    if not 0.0 < p <= 1.0:
        near = 1.0 if p > 1.0 else DEFAULT_P[GATE]
        raise ConfigError(f"--p={p}: a share above 0, at most 1; nearest valid value {near}")
    for expert, score in scores.items():
        if not np.isfinite(score):
            raise ConfigError(f"the score of expert {expert} is {score}; it must be finite")
    ticks = {expert: round(score * 10**DIGITS) for expert, score in scores.items()}
    # A sum of binary fractions may stop a hair short of a p that the decimals reach.
    wanted, reached = Fraction(str(p)) * 10**DIGITS, 0
    chosen = []
    for expert in sorted(ticks, key=lambda one: (-ticks[one], one)):
        if reached >= wanted:
            break
        chosen.append(expert)
        reached += ticks[expert]
    return tuple(chosen)


def select(table: Table, p: float) -> dict[int, tuple[int, ...]]:
    """`smallest_prefix` of every layer.

    Raises:
      ConfigError: as there, with the layer.
    """
    found = {}
    for layer, scores in sorted(table.items()):
        try:
            found[layer] = smallest_prefix(scores, p)
        except ConfigError as error:
            where = "" if str(error).startswith("--p") else f"layer {layer}: "
            raise ConfigError(f"{where}{error}") from error
    return found


def union(several: Sequence[Experts]) -> dict[int, tuple[int, ...]]:
    """Experts that are chosen for any of several tasks: those of the first, then what the next
    adds, each best first."""
    layers = sorted({layer for experts in several for layer in experts})
    return {
        layer: tuple(dict.fromkeys(one for experts in several for one in experts.get(layer, ())))
        for layer in layers
    }


def random_like(experts: Experts, table: Table, seed: int) -> dict[int, tuple[int, ...]]:
    """The control: as many experts of each layer, drawn from all of it with equal chances.

    Args:
      experts: what it has the counts of; for a union of tasks the union.
      table: scores of any kind: which experts there are.
      seed: 0 or above; layers are drawn independently.

    Raises:
      ConfigError: a negative seed.
    """
    if seed < 0:
        raise ConfigError(f"--seed={seed}: must be >= 0; nearest valid value 0")
    found = {}
    for layer, chosen in sorted(experts.items()):
        there = np.asarray(sorted(table[layer]))
        drawn = np.random.default_rng([seed, layer]).permutation(there)[: len(chosen)]
        found[layer] = tuple(int(one) for one in drawn)
    return found


def trainable_experts(model: ModelConfig) -> dict[int, tuple[int, ...]]:
    """By MoE layer the experts that have weights; those that compute nothing (MoE++) have none."""
    return {
        layer: tuple(expert for expert, width in enumerate(moe.spec.widths) if width)
        for layer, moe in enumerate(model.plan())
        if moe is not None
    }


def method_of(selection: Selection) -> ESFT:
    """The method that trains a selection; `non_expert_modules` is all that is not an expert."""
    others = selection.non_expert_modules
    return ESFT(
        experts={str(layer): tuple(chosen) for layer, chosen in selection.experts.items()},
        shared_experts=selection.shared_experts,
        router=others,
        attention=others,
        norms=others,
        dense=others,
        embeddings=others,
    )


def check_selection(
    selection: Selection, model: Transformer, base_hash: str = "", where: str = "--selection"
) -> None:
    """Refuses a selection that does not fit a model.

    Args:
      selection: as `moejax.finetune.formats.read_selection` returns it.
      model: what is trained.
      base_hash: of its parameters; "": not compared.
      where: what the message begins with, e.g. the file.

    Raises:
      ConfigError: names the first layer or expert that is not there or cannot be trained, or says
        that the selection was made for another model, or chooses nothing.
    """
    origin = selection.origin
    if base_hash and origin.base_hash and origin.base_hash != base_hash:
        raise ConfigError(
            f"{where}: was chosen for another model: for base {origin.base_hash[:12]} "
            f"({origin.run or 'run not known'}), this one is {base_hash[:12]}; score this one anew"
        )
    there = trainable_experts(model.config)
    if not there:
        raise ConfigError(f"{where}: the model is dense; nearest valid a base with MoE layers")
    counts = {layer: len(experts) for layer, experts in there.items()}
    if origin.experts and dict(origin.experts) != counts:
        raise ConfigError(
            f"{where}: was chosen for another model: its layers have {_counts(origin.experts)} "
            f"experts, those of this one {_counts(counts)}; score this one anew"
        )
    method = method_of(selection)
    method.validate(where)
    check_experts(method.experts, model, f"{where}: experts")


def _counts(by_layer: Mapping[int, int]) -> str:
    """`26 x 64` where all layers have as many, else one by one."""
    values = [by_layer[layer] for layer in sorted(by_layer)]
    if len(set(values)) == 1:
        return f"{len(values)} x {values[0]}"
    return ", ".join(map(str, values))
