"""From an intervention and a model to the points of its sweep, and to the edits of each point."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from moejax.config import ConfigError, nearest
from moejax.experts import MoeConfig
from moejax.models import Transformer
from moejax.probe.interventions.edit import BEFORE, WHENS, Edit
from moejax.probe.interventions.kinds import Kind, Value, kind_of
from moejax.probe.interventions.program import Edits

ALL, EACH = "all", "each"


@dataclasses.dataclass(frozen=True)
class Intervention:
    """What is done to a model, with its conventions (docs/interventions.md).

    Attributes:
      what: name in `kinds.KINDS`.
      values: what is swept; empty: the kind's default values.
      when, renormalise: as in `Edit`; they mean something where experts are taken away.
      layers: `all` MoE layers together, `each` of them alone, or model indices (`1,3`: these
        together). `drop_one` acts on one layer at a time, of all or of those that are named.
    """

    what: str
    values: tuple[Value, ...] = ()
    when: str = BEFORE
    renormalise: bool = True
    layers: str = ALL

    @property
    def folder(self) -> str:
        """`what`, and whatever convention is not the default one."""
        parts = [self.what, *([self.when] if self.when != BEFORE else [])]
        parts += [] if self.renormalise else ["raw"]
        parts += [] if self.layers == ALL else [f"layers_{self.layers.replace(',', '_')}"]
        return "-".join(parts)


@dataclasses.dataclass(frozen=True)
class Point:
    """One pass over the text: a value, and the layers (model indices) that it acts on."""

    value: Value
    layers: tuple[int, ...]


def points(model: Transformer, intervention: Intervention) -> list[Point]:
    """The passes of a sweep, in order of values within layers.

    Raises:
      ConfigError: one line: an intervention, value, layer or convention that is none, or one that
        means nothing for the router of a layer.
    """
    kind = kind_of(intervention.what)
    _check_conventions(kind, intervention)
    moes = _moes(model)
    chosen = _layers(intervention.layers, list(moes))
    for layer in chosen:
        reason = kind.refuses(moes[layer], intervention.when)
        if reason:
            fit = [str(one) for one in moes if not kind.refuses(moes[one], intervention.when)]
            others = f", or --layers={','.join(fit)}" if fit else ""
            router = getattr(moes[layer].router, "registered_name", "?")
            raise ConfigError(
                f"--what={kind.name}: the router {router} of layer {layer} {reason}{others}"
            )
    here = [moes[layer] for layer in chosen]
    values = intervention.values or kind.defaults(here)
    alone = kind.per_expert or intervention.layers == EACH
    for value in values:
        _check_value(kind, value, moes, chosen)
    if not alone:
        return [Point(value, tuple(chosen)) for value in values]
    return [
        Point(value, (layer,))
        for layer in chosen
        for value in values
        if not kind.per_expert or value <= kind.bounds(moes[layer])[1]
    ]


def make_edits(
    model: Transformer, intervention: Intervention, sweep: Sequence[Point]
) -> list[Edits]:
    """The edits of each point: equal in everything but the numbers in their arrays.

    Layers that no point acts on have no edit; at a point that does not act on it, a layer has the
    values that it was trained with.
    """
    kind = kind_of(intervention.what)
    acted = {layer for point in sweep for layer in point.layers}
    return [_edits(model, intervention, kind, sweep, point, acted) for point in sweep]


def _edits(
    model: Transformer,
    intervention: Intervention,
    kind: Kind,
    sweep: Sequence[Point],
    point: Point,
    acted: set[int],
) -> Edits:
    found: Edits = []
    for stack in model.segments:
        found.append({})
        for position, moe in enumerate(stack.segment.pattern):
            layers = stack.segment.layers(position)
            if moe is None or acted.isdisjoint(layers):
                continue
            settings = [
                kind.settings(point.value, moe) if layer in point.layers else {} for layer in layers
            ]
            slots = max(_slots(moe, kind.settings(one.value, moe)) for one in sweep)
            found[-1][str(position)] = _edit(moe, settings, slots, intervention)
    return found


def _edit(
    moe: MoeConfig, settings: Sequence[dict[str, Any]], slots: int, intervention: Intervention
) -> Edit:
    """An edit whose arrays have a leading axis over `settings`, one for each layer."""
    trained = {
        "top": 0,
        "k": getattr(moe.router, "k", 0),
        "p": getattr(moe.router, "p", 0.0),
        "extra": 0,
        "shared": True,
    }
    dtypes = {"p": np.float32, "shared": np.bool_}
    numbers: dict[str, Any] = {
        name: np.array([one.get(name, value) for one in settings], dtypes.get(name, np.int32))
        for name, value in trained.items()
    }
    numbers["drop_E"] = np.array(
        [[e in one.get("drop", ()) for e in range(moe.num_experts)] for one in settings], np.bool_
    )
    return Edit(
        **numbers,
        router=moe.router,
        slots=slots,
        when=intervention.when,
        renormalise=intervention.renormalise,
    )


def _slots(moe: MoeConfig, settings: dict[str, Any]) -> int:
    """Slots that a value may fill, within the experts that there are; not fewer than trained."""
    trained = moe.router.slots(moe.num_experts)
    wanted = max(trained, settings.get("k", 0)) + settings.get("extra", 0)
    return min(wanted, moe.num_experts)


def _moes(model: Transformer) -> dict[int, MoeConfig]:
    """The MoE layers by model index."""
    found = {layer: group.config for group in model.groups for layer in group.layers}
    if not found:
        raise ConfigError("the model has no MoE layer; nearest valid a run with model.moe")
    return dict(sorted(found.items()))


def _layers(choice: str, there: list[int]) -> list[int]:
    if choice in (ALL, EACH):
        return there
    names = ",".join(map(str, there))
    words = choice.split(",")
    if not all(word.isascii() and word.isdecimal() and len(word) < 10 for word in words):
        raise ConfigError(
            f"--layers={choice!r}: {ALL}, {EACH}, or model layers like {names}"
            f"{nearest(choice, (ALL, EACH))}"
        )
    for word in words:
        if int(word) not in there:
            near = min(there, key=lambda layer: abs(layer - int(word)))
            raise ConfigError(
                f"--layers={choice}: layer {word} is no MoE layer; nearest valid {near} "
                f"(there are: {names})"
            )
    return sorted({int(word) for word in words})


def _check_conventions(kind: Kind, intervention: Intervention) -> None:
    if intervention.when not in WHENS:
        raise ConfigError(
            f"--when={intervention.when!r}: one of {', '.join(WHENS)}"
            f"{nearest(intervention.when, WHENS)}"
        )
    if kind.removes:
        return
    if intervention.when != BEFORE:
        raise ConfigError(
            f"--when={intervention.when}: {kind.name} takes no expert away; nearest valid "
            f"--when={BEFORE}"
        )
    if not intervention.renormalise:
        raise ConfigError(
            f"--norenormalise: {kind.name} weighs as the router's own rule does; nearest valid "
            "--renormalise"
        )


def _check_value(
    kind: Kind, value: Value, moes: dict[int, MoeConfig], layers: Sequence[int]
) -> None:
    """Every layer must be able to have it; of experts by number, one layer is enough."""
    bounds = [kind.bounds(moes[layer]) for layer in layers]
    low = max(low for low, _ in bounds)
    high = (max if kind.per_expert else min)(high for _, high in bounds)
    if isinstance(value, Fraction):
        low, high = 0, 1
    if not low <= value <= high:
        near = min(max(value, low), high)
        if kind.name == "p" and near == low:
            near = 0.01
        raise ConfigError(
            f"--values: {kind.name}={value} is out of range for layers "
            f"{','.join(map(str, layers))}; nearest valid value {near}"
        )
