"""The selection of a fine-tuning: read, or scored and selected on the spot."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from moejax.config import ConfigError
from moejax.finetune.base import Base
from moejax.finetune.esft import choose
from moejax.finetune.formats import SUMMARY, read_selection, write_selection, write_summary
from moejax.finetune.measure import measure
from moejax.finetune.recipe import NO_TASK, Recipe, scored_with
from moejax.finetune.sampling import Sampling, open_task_documents, windows
from moejax.finetune.scores import Origin
from moejax.finetune.selection import Selection, check_selection
from moejax.probe.opened import Say
from moejax.train.votes import on_first

FOLDER, EXPERTS = "esft", "expert_config.json"
PRESETS = {"samples": (Recipe().samples, 4), "length": (Recipe().length, 128)}
"""Sizes of the scoring that a user need not have asked for: the defaults, and those of `quick`."""


def selection_for(recipe: Recipe, base: Base, workdir: Path, given: str, say: Say) -> Selection:
    """The experts that a run trains; all processes call it and get the same.

    Args:
      recipe: of an ESFT method.
      base: what is scored.
      workdir: of the run; scores and selection are written to its `esft/TASK`.
      given: file of a selection, "": the base is scored, unless this has been done before.
      say: told what was selected.

    Raises:
      ConfigError: the file is no selection, or one of another model; or the task is empty.
    """
    if given:
        _require_no_sampling(recipe)
        found = _shared(lambda: read_selection(Path(given).expanduser()))
        check_selection(found, base.run.model, base.hash, given)
        return found
    if recipe.task == NO_TASK:
        raise ConfigError("--selection: is required with task=none: there is no task to score on")
    documents = open_task_documents(base.run, recipe.task)
    sampling = Sampling(recipe.samples, recipe.length)
    file = workdir / FOLDER / documents.name / EXPERTS
    if on_first(lambda: file.is_file()):
        found = _shared(lambda: read_selection(file))
        window = base.experiment.data.seq_len
        anew = windows(documents, sampling.within(window), lambda _: None)
        if scored_with(found, recipe, base.hash, anew):
            say(f"{file}: selected before, {found.count} experts")
            return found
    restored = base.run.restore(base.step, say)
    # Every process scores the same tokens on a device of its own: nothing is collected.
    measured = measure(base.run, restored, documents, sampling, base.hash, say)
    seed = recipe.seed if recipe.method == "esft_random" else None
    chosen = choose([measured.scores], recipe.score, recipe.p, seed)

    def write() -> dict[str, Any]:
        write_summary(file.with_name(SUMMARY), measured.scores)
        write_selection(file, chosen)
        return _plain(chosen)

    found = _made(on_first(write))
    say(f"{file}: {found.count} experts selected by {recipe.score} scores, p={found.p:g}")
    return found


def _require_no_sampling(recipe: Recipe) -> None:
    """Refuses a size of the scoring where nothing is scored, other than that of a preset."""
    for name, usual in PRESETS.items():
        value = getattr(recipe, name)
        if value not in usual:
            raise ConfigError(
                f"config.{name}={value}: with --selection nothing is scored; nearest valid value "
                f"{usual[0]}"
            )


def _shared(read: Any) -> Selection:
    """What process 0 reads, in all of them."""
    return _made(on_first(lambda: _plain(read())))


def _plain(selection: Selection) -> dict[str, Any]:
    """As JSON holds it, with layers as strings."""
    plain = dataclasses.asdict(selection)
    plain["experts"] = {str(k): list(v) for k, v in selection.experts.items()}
    plain["origin"]["experts"] = {str(k): v for k, v in selection.origin.experts.items()}
    return plain


def _made(plain: dict[str, Any]) -> Selection:
    origin = dict(plain["origin"])
    origin["experts"] = {int(k): v for k, v in origin["experts"].items()}
    experts = {int(k): tuple(v) for k, v in plain["experts"].items()}
    return Selection(**{**plain, "experts": experts, "origin": Origin(**origin)})
