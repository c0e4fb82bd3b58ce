"""The main variant of every paper trains, at quick sizes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import paper_configs
import pytest

from moejax.data import DataConfig, Dataset, prepare
from moejax.sharding import MeshConfig
from moejax.train import run
from moejax.train.evaluate import EvaluationConfig
from moejax.train.log import LogConfig

SENTENCE = "the cat sat on a mat and saw 12 dogs run past; then, at noon, it slept."
STEPS = 3


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, Dataset]:
    """A tiny corpus for the tokenizer and window of the quick configs."""
    directory = tmp_path_factory.mktemp("papers")
    words = SENTENCE.split()
    for index in range(12):
        order = [words[(7 * index + place * (index + 1)) % len(words)] for place in range(120)]
        (directory / f"{index:02d}.txt").write_text(" ".join(order) + "\n")
    quick = paper_configs.load("mixtral", "8x7b", quick=True).data
    data = dataclasses.replace(
        quick, corpus=f"files:{directory}/*.txt", cache_dir=str(directory / "cache"), limit_bytes=0
    )
    return data, prepare(data, None)


@pytest.mark.slow
@pytest.mark.parametrize("paper", paper_configs.MAIN)
def test_a_paper_trains(paper: str, text: tuple[DataConfig, Dataset], tmp_path: Path) -> None:
    quick = paper_configs.load(paper, paper_configs.MAIN[paper], quick=True)
    chosen = dataclasses.replace(
        quick,
        data=text[0],
        train=dataclasses.replace(quick.train, steps=STEPS),
        evaluation=EvaluationConfig(every=STEPS, batch_size=8, max_tokens=256, trace_tokens=64),
        log=LogConfig(tensorboard=False),
        # Batches of the quick form need not divide over the tests' eight devices.
        mesh=MeshConfig(fsdp=1),
    )
    run(chosen, tmp_path / "run", dataset=text[1])
    written = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in written]
    losses = {
        key: [line[key] for line in lines if key in line]
        for key in ("train/total_loss", "train/grad_norm", "eval/loss")
    }
    assert [len(values) for values in losses.values()] == [STEPS, STEPS, 1]
    # What is not finite is null in a run directory.
    assert all(isinstance(value, float) for values in losses.values() for value in values), losses
    assert any(key.startswith("train/aux/") for key in lines[0]), "it trains without its own losses"
