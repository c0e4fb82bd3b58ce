"""Treatments: runs that differ in nothing but their seed."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

from moejax.analysis import text
from moejax.analysis.compare.curves import Curve
from moejax.analysis.runs import Run
from moejax.analysis.summary import kind

_CELL = re.compile(r"(^|,)seed=-?[0-9]+(-[0-9a-f]{10})?$")
_TAIL = re.compile(r"[-_=,./ ]*(seed|s)?[-_=,./ ]*$")
_FREE = {"seed", "name", "workdir"}  # at the top only: `model.moe.router.name` is a treatment
# Sections of which a run directory may say that a key changes no number (`may_change`).
_FREED = ("log", "checkpoint", "mesh", "exchange")


@dataclasses.dataclass(frozen=True)
class Member:
    """A run that takes part: its seed ("" if unknown) and its validation curve."""

    run: Run
    seed: str
    curve: Curve

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.name


@dataclasses.dataclass(frozen=True)
class Treatment:
    """Runs of one configuration, each with its own seed."""

    name: str
    members: tuple[Member, ...]

    @property
    def kind(self) -> str:
        """The routers in words, as in the report: `dense`, `top_k`, `top_p, 4 widths`."""
        return kind(self.members[0].run)

    @property
    def dense(self) -> bool:
        """Whether no layer has routed experts."""
        return self.kind == "dense"

    @property
    def by_seed(self) -> dict[str, Member]:
        """The members whose seed is known: what can be paired."""
        return {member.seed: member for member in self.members if member.seed}


def treatment_key(run: Run) -> str:
    """Digest of all that a run computes but its seed; "" for a run without a readable config.

    Left out are seeds, names and work directories, and what the run directory itself lists as
    changing no number (logging, checkpoints, placement).
    """
    config = run.config.get("config")
    if not isinstance(config, dict) or not config:
        return ""
    listed = run.config.get("may_change")
    free = {key for key in listed if isinstance(key, str)} if isinstance(listed, list) else set()
    free = {k for k in free if k.partition(".")[0] in _FREED or k == "data.cache_dir"}
    try:
        shown = json.dumps(_without(config, "", free | _FREE), sort_keys=True)
    except RecursionError:  # deeper than any config: equal to nothing but itself
        shown = f"unreadable {run.path}"
    return hashlib.sha256(shown.encode("utf-8", "surrogatepass")).hexdigest()


def _without(node: Any, prefix: str, free: set[str]) -> Any:
    if not isinstance(node, dict):
        return node
    return {
        key: _without(value, f"{prefix}{key}.", free)
        for key, value in node.items()
        if f"{prefix}{key}" not in free
    }


def seed_of(run: Run) -> str:
    """The seed as text, "" if the config has none. It decides initial weights and data order."""
    seed = run.config.get("config", "seed")
    known = isinstance(seed, int | str) and not isinstance(seed, bool)
    return text.clean(seed, 40) if known else ""


def common_name(names: Sequence[str]) -> str:
    """What names have in common: of a grid's cells their axes, else how they begin."""
    cells = {_CELL.sub("", name) for name in names}
    if len(cells) == 1 and "" not in cells:
        return cells.pop()
    first, last = min(names), max(names)  # what these begin with alike, all between them do
    pairs = enumerate(zip(first, last, strict=False))
    length = next((i for i, (a, b) in pairs if a != b), min(len(first), len(last)))
    begin = _TAIL.sub("", first[:length])
    return begin or f"{names[0]} and {len(names) - 1} more"


def unique_names(names: Sequence[str]) -> list[str]:
    """The names, with ` #2`, ` #3`, ... behind those that were there before."""
    made: dict[str, None] = {}
    for name in names:
        numbered = (f"{name} #{i}" for i in itertools.count(2))
        made[name if name not in made else next(n for n in numbered if n not in made)] = None
    return list(made)
