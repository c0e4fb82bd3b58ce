"""What the host does between two steps: it compiles nothing, and reads one step late."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import standin
from jax import monitoring

from configs import lm
from moejax.config import build
from moejax.data import DataConfig, Dataset
from moejax.train import Experiment, run, session
from moejax.train.checkpoint import CheckpointConfig
from moejax.train.evaluate import EvaluationConfig
from moejax.train.log import LogConfig

STEPS = 12
COMPILED = "/jax/core/compile/backend_compile_duration"
Text = tuple[DataConfig, Dataset]


def watch_steps(patch: pytest.MonkeyPatch, step: Any) -> None:
    """Puts `step(train_step, state, batch)` in the place of a run's train step."""
    compile_really = session.compile_programs

    def compile_watched(config: Experiment, model: Any = None) -> Any:
        programs = compile_really(config, model)

        def watched(state: Any, batch: Any) -> Any:
            return step(programs.train_step, state, batch)

        return dataclasses.replace(programs, train_step=watched)

    patch.setattr(session, "compile_programs", compile_watched)


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Programs compiled from now on, whichever of JAX's doors they come through."""
    names: list[str] = []

    def listen(event: str, _: float, **facts: Any) -> None:
        if event == COMPILED:
            names.append(str(facts.get("fun_name", "?")))

    monitoring.register_event_duration_secs_listener(listen)
    yield names
    monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("kind", ["dense", "top_p"])
def test_a_run_compiles_when_it_does_a_thing_for_the_first_time_and_never_again(
    kind: str, text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compilations: list[str]
) -> None:
    """Real models, from empty caches; the first save and evaluation are at step 4."""
    made = build(Experiment, lm.get_config(f"size=nano,quick=true,moe={kind}"))
    config = dataclasses.replace(
        made,
        data=text[0],
        train=dataclasses.replace(made.train, batch_size=4, steps=STEPS),
        evaluation=EvaluationConfig(every=4, batch_size=4, max_tokens=128, trace_tokens=64),
        checkpoint=CheckpointConfig(every=4, minutes=0.0),
        log=LogConfig(tensorboard=False),
    )
    jax.clear_caches()
    compiled_before: list[int] = []  # each step

    def step(train_step: Any, state: Any, batch: Any) -> Any:
        compiled_before.append(len(compilations))
        return train_step(state, batch)

    watch_steps(monkeypatch, step)
    run(config, tmp_path / "run", dataset=text[1])
    assert len(compiled_before) == STEPS
    assert compiled_before[0] > 0  # they are seen at all
    assert len(set(compiled_before[:4])) == 1, compilations
    assert len({*compiled_before[4:], len(compilations)}) == 1, compilations[compiled_before[4] :]


class Watched:
    """One number of a step's metrics, which writes down when it is read."""

    def __init__(self, step: int, value: jax.Array, events: list[tuple[str, int]]) -> None:
        self.step, self.value, self.events = step, value, events

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        self.events.append(("read", self.step))
        return np.asarray(self.value)


class Closed:
    """The train state between two steps: not an array, nor a tree of arrays."""

    def __init__(self, state: Any) -> None:
        self.state = state


def test_metrics_are_read_once_and_one_step_late_and_nothing_else_is_read(
    text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transfer guard does not see a read on a CPU, so what is read is put in a wrapper."""
    config = standin.experiment(
        text[0], steps=STEPS, checkpoint=CheckpointConfig(every=1000, minutes=0.0)
    )
    quiet = dataclasses.replace(config.evaluation, every=1000)
    config = dataclasses.replace(config, evaluation=quiet)
    events: list[tuple[str, int]] = []
    leaves = 0

    def step(train_step: Any, state: Any, batch: Any) -> Any:
        nonlocal leaves
        number = sum(event == "launch" for event, _ in events) + 1
        events.append(("launch", number))
        state, metrics = train_step(state.state if number > 1 else state, batch)
        leaves = len(jax.tree.leaves(metrics))
        metrics = jax.tree.map(lambda value: Watched(number, value, events), metrics)
        return (Closed(state) if number < STEPS else state), metrics

    watch_steps(monkeypatch, step)
    run(config, tmp_path / "run", dataset=text[1], model=standin.standin(config))
    expected = [("launch", 1)]
    for number in range(2, STEPS + 1):
        expected += [("launch", number), *[("read", number - 1)] * leaves]
    expected += [("read", STEPS)] * leaves
    assert events == expected
