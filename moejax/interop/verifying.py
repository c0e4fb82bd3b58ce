"""Proof of an import: every tensor of the source, made again out of our parameters."""

from __future__ import annotations

import numpy as np

from moejax.config import ConfigError
from moejax.interop.exporting import tensor
from moejax.interop.importing import tied_head
from moejax.interop.rundir import OpenedModel
from moejax.interop.safetensors import DTYPES, shown
from moejax.interop.source import Source


def verify(source: Source, opened: OpenedModel) -> str:
    """Compares bit for bit, one tensor at a time; one line that says so.

    A tensor that the run holds in a narrower dtype is compared in that dtype, and counted. One that
    the import was told to leave out is counted, too.

    Raises:
      ConfigError: the run was imported from something else, or tensors differ; the first is named
        with its largest difference. Or the source has a tensor that the import did not know.
    """
    family, layout = opened.family, opened.layout
    if family is None or layout is None:
        raise ConfigError("the run was not imported: there is nothing that it should equal")
    if source.config.get("model_type") != family.model_type:
        raise ConfigError(
            f"{source.where}: is a {shown(source.config.get('model_type'))}, the run came from a "
            f"{family.model_type}"
        )
    names = set(source.names())
    links = list(family.links(opened.model, layout))
    missing = [link.name for link in links if link.name not in names]
    if missing:
        raise ConfigError(
            f"{source.where}: lacks {len(missing)} tensors of the run, such as {shown(missing[0])}"
        )
    held_twice = tied_head(source, opened.model, names - opened.skipped)
    unknown = names - {link.name for link in links} - opened.skipped - set(held_twice)
    if unknown:
        raise ConfigError(
            f"{source.where}: has {len(unknown)} tensors that are not in the run, such as "
            f"{shown(min(unknown))}"
        )
    narrower, wrong = 0, []
    for link in links:
        theirs = source.read(link.name)
        held = {target.view(opened.tree).dtype for target in link.targets}
        kept = np.result_type(*held)
        if not np.can_cast(theirs.dtype, kept, "safe"):
            theirs = theirs.astype(kept).astype(theirs.dtype)
            narrower += 1
        mine = tensor(link, opened.tree, source.dtype(link.name))
        if mine.shape != theirs.shape or not np.array_equal(_bits(mine), _bits(theirs)):
            wrong.append((link.name, _distance(mine, theirs)))
    if wrong:
        name, distance = wrong[0]
        raise ConfigError(
            f"{len(wrong)} of {len(links)} tensors differ from {source.where}, the first "
            f"{shown(name)} by up to {distance:.3g} (of step {opened.step}: trained on?)"
        )
    extra = f", {narrower} of them in the run's narrower dtype" if narrower else ""
    if left := len(names & opened.skipped):
        extra += f"; {left} left out at the import"
    return f"{len(links)} of {len(links)} tensors equal bit for bit{extra}"


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint8)


def _distance(mine: np.ndarray, theirs: np.ndarray) -> float:
    if mine.shape != theirs.shape:
        return float("inf")
    wide = DTYPES["F64"]
    return float(np.abs(mine.astype(wide) - theirs.astype(wide)).max(initial=0.0))
