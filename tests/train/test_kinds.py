"""`configs/lm.py` has every router, every kind trains, and one report compares them all."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from configs import lm
from moejax.analysis.report import write_report
from moejax.config import build, check
from moejax.data import DataConfig, Dataset
from moejax.routing import ROUTERS
from moejax.train import Experiment, run
from moejax.train.evaluate import EvaluationConfig
from moejax.train.log import LogConfig


def experiment(kind: str, **options: str) -> Experiment:
    given = ",".join(f"{name}={value}" for name, value in options.items())
    return build(Experiment, lm.get_config(f"moe={kind},{given}"))


@pytest.mark.parametrize("kind", lm.KINDS)
def test_every_kind_is_possible(kind: str) -> None:
    for size in ("nano", "base", "1b", "16b", "671b"):
        check(experiment(kind, size=size), "config")
        check(experiment(kind, size=size, quick="true"), "config")


CONVERTED = {"oracle", "moefication", "learned_masks", "fixed_masks"}
"""Routers of models that tools.convert makes."""


def test_every_router_of_ours_has_a_kind() -> None:
    models = [experiment(kind, size="nano").model for kind in lm.KINDS]
    used = {type(model.moe.router) for model in models if model.moe}
    ours = {name: ROUTERS.get(name) for name in ROUTERS.names()}
    missing = [
        name
        for name, router in ours.items()
        if router.__module__.startswith("moejax.") and router not in used
    ]
    assert set(missing) == CONVERTED


@pytest.mark.slow
def test_every_kind_trains_and_one_report_compares_them(
    text: tuple[DataConfig, Dataset], tmp_path: Path
) -> None:
    for kind in lm.KINDS:
        made = experiment(kind, size="nano", quick="true")
        made = dataclasses.replace(
            made,
            name=kind,
            data=text[0],
            train=dataclasses.replace(made.train, batch_size=4, steps=3),
            evaluation=EvaluationConfig(every=3, batch_size=4, max_tokens=128, trace_tokens=64),
            log=LogConfig(tensorboard=False),
        )
        run(made, tmp_path / kind, dataset=text[1])
    write_report([str(tmp_path / kind) for kind in lm.KINDS], str(tmp_path / "report"))
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [found["name"] for found in report["runs"]] == list(lm.KINDS)
    assert all(found["summary"]["state"] == "done" for found in report["runs"])
