"""What a fine-tuned run says of itself: method, task, base, seed, and what it cost."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from typing import Any

from moejax.analysis import text
from moejax.analysis.compare.treatments import seed_of
from moejax.analysis.runs import Record, Run
from moejax.analysis.view import View

MAX_LAYERS = 4096
RANDOM = "random"
_FREE = {"seed", "name", "workdir", "log", "checkpoint", "mesh", "exchange"}
# What a base is, is told by its hash: the place it lies at changes no number.
_FREE_TUNING = {"base", "base_step", "base_hash"}


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A run that started from another one's parameters; NaN: final.json does not tell.

    Attributes:
      view: the run.
      method: a word for it: esft_gate, lora, full, ...
      key: digest of the whole configuration, the seed and the base's place aside. Of a random
        selection the drawn experts are left out as well: their seed is the run's.
      task: what it was trained on.
      base_hash: of the parameters it started from; `base` is the directory, `base_step` the step.
      seed: "" if the config has none.
      p: cumulative score that a selection reaches.
      experts, chosen: experts of the layers that a selection is about, and how many of them train;
        0: the method selects none.
      trainable, total: parameters.
      stored: bytes of the adapter.
      optimizer_bytes, step_bytes: memory of the optimizer's state, and of the train step.
      step_seconds: median.
      best_step: the checkpoint that counts; `best_loss`: its loss on the validation split.
    """

    view: View
    method: str
    key: str
    task: str
    base_hash: str
    base: str
    base_step: float
    seed: str
    p: float
    experts: int
    chosen: int
    trainable: float
    total: float
    stored: float
    optimizer_bytes: float
    step_bytes: float
    step_seconds: float
    best_step: float
    best_loss: float

    @property
    def name(self) -> str:
        """The run's name."""
        return self.view.name

    @property
    def share(self) -> float:
        """Share of the routed experts that train; NaN where the method selects none."""
        return self.chosen / self.experts if self.experts else math.nan


def is_tuned(run: Run) -> bool:
    """Whether a run began with the parameters of another one."""
    return bool(run.final.get("finetune")) or bool(run.config.get("config", "finetune"))


def tuned(view: View) -> Tuned | None:
    """None for a run that is no finished fine-tuning."""
    run = view.run
    final = Record(run.final.get("finetune"))
    if not final:
        return None
    config = Record(run.config.get("config", "finetune"))
    method = final.string("method") or config.string("label") or config.string("method", "name")
    experts, chosen = _selection(run, config)
    p = config.number("p")
    return Tuned(
        view=view,
        method=method or "?",
        key=_key(run, method),
        task=task_name(config.string("task") or final.string("task")),
        base_hash=final.string("base_hash") or config.string("base_hash"),
        base=config.string("base"),
        base_step=config.number("base_step"),
        seed=seed_of(run),
        p=p if p > 0 else math.nan,
        experts=experts,
        chosen=chosen,
        trainable=final.number("trainable_parameters"),
        total=final.number("total_parameters"),
        stored=final.number("adapter_bytes"),
        optimizer_bytes=final.number("optimizer_bytes"),
        step_bytes=final.number("step_bytes"),
        step_seconds=final.number("step_seconds"),
        best_step=final.number("best_step"),
        best_loss=final.number("best_loss"),
    )


def _selection(run: Run, config: Record) -> tuple[int, int]:
    """Routed experts of the selection's layers, and how many of them are selected."""
    listed = config.get("method", "experts")
    if not isinstance(listed, dict):
        return 0, 0
    by_layer = {
        str(layer): len(found)
        for layer, found in list(listed.items())[:MAX_LAYERS]
        if isinstance(found, list)
    }
    experts = {
        f"{layer.number('index'):.0f}": layer.number("experts")
        for layer in run.model.records("layers")
        if layer.string("kind") == "moe"
    }
    there = [experts[layer] for layer in by_layer if layer in experts]
    if not by_layer or len(there) < len(by_layer):
        return 0, 0
    return int(sum(experts.values())), sum(by_layer.values())


def _key(run: Run, method: str) -> str:
    config = run.config.get("config")
    if not isinstance(config, dict) or not config:
        return f"unreadable {run.path}"
    kept: dict[str, Any] = {name: one for name, one in config.items() if name not in _FREE}
    if isinstance(kept.get("data"), dict):
        kept["data"] = {name: one for name, one in kept["data"].items() if name != "cache_dir"}
    tuning = kept.get("finetune")
    if isinstance(tuning, dict):
        tuning = {name: one for name, one in tuning.items() if name not in _FREE_TUNING}
        own = tuning.get("method")
        if isinstance(own, dict) and RANDOM in method:
            tuning["method"] = own | {"experts": _counts(own.get("experts"))}
        kept["finetune"] = tuning
    try:
        shown = json.dumps([method, kept], sort_keys=True)
    except RecursionError:  # deeper than any config: equal to nothing but itself
        shown = f"unreadable {run.path}"
    return hashlib.sha256(shown.encode("utf-8", "surrogatepass")).hexdigest()


def _counts(experts: Any) -> Any:
    """How many experts of each layer, in place of which."""
    if isinstance(experts, dict):
        return {layer: _counts(one) for layer, one in experts.items()}
    return len(experts) if isinstance(experts, list) else experts


def task_name(spec: str) -> str:
    """A task as it is asked for, without the `task:` that may stand before."""
    return text.clean(spec.removeprefix("task:"), 120)
