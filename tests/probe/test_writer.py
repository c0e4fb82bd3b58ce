"""A run directory opened to write and to score: the right numbers, and one-line errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from moejax.config import ConfigError, read_json, write_json
from moejax.probe import OpenedRun
from moejax.probe.generation import Request, Sampling
from moejax.probe.scoring import Span
from moejax.probe.writer import open_writer

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def copy(trained: OpenedRun, tmp_path: Path) -> Path:
    """The run, to be changed."""
    return Path(shutil.copytree(trained.root, tmp_path / "run"))


def change(root: Path, *path: str, value: object) -> None:
    record = read_json(root / path[0])
    place = record
    for name in path[1:-1]:
        place = place[name]
    place[path[-1]] = value
    write_json(root / path[0], record)


@pytest.mark.slow
def test_what_is_written_scores_as_it_was_written(trained: OpenedRun) -> None:
    writer = open_writer(trained.root)
    assert writer.step == 4 and writer.trained_length == 16
    prompt = writer.ids("the cat ")
    (text,) = writer.generator(1).generate([Request(prompt, 6, Sampling(temperature=0))])
    (score,) = writer.scorer(1).score([Span(prompt, text.tokens)])
    assert score.greedy
    assert score.logprob_N == pytest.approx(text.logprobs, abs=1e-4)
    assert text.text == writer.tokenizer.decode(text.tokens)
    assert writer.ids("") == (writer.tokenizer.eos_id,)


def tighten(root: Path) -> None:
    change(root, "config.json", "config", "model", "moe_variants", "unequal", "capacity", "factor",
           value=1.5)  # fmt: skip


def test_routing_that_depends_on_the_batch_is_refused(copy: Path) -> None:
    tighten(copy)
    with pytest.raises(ConfigError, match=r"capacity.factor=1.5: .*--lift_capacity"):
        open_writer(copy)


@pytest.mark.slow
def test_a_capacity_is_lifted(copy: Path) -> None:
    tighten(copy)
    lifted = open_writer(copy, lift_capacity=True)
    assert lifted.model.config.moe_variants["unequal"].capacity.factor == 0
    assert lifted.run.experiment.model.moe_variants["unequal"].capacity.factor == 1.5


def test_another_tokenizer_is_refused(copy: Path) -> None:
    change(copy, "data.json", "tokenizer_hash", value="0123456789abcdef")
    with pytest.raises(ConfigError, match="trained with another tokenizer"):
        open_writer(copy)


def test_a_tokenizer_that_needs_no_text_is_made_without_it(copy: Path) -> None:
    change(copy, "config.json", "config", "data", "tokenizer", value="bytes")
    change(copy, "config.json", "config", "data", "corpus", value="files:/nowhere/*.txt")
    with pytest.raises(ConfigError, match=r"tokenizer_hash is .* config.data.tokenizer='bytes'"):
        open_writer(copy)


def generate(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.generate", *flags],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )


@pytest.mark.slow
def test_the_command_writes_json_and_refuses_in_one_line(trained: OpenedRun) -> None:
    flags = (f"--run={trained.root}", "--max_new_tokens=5", "--num_samples=2", "--json")
    done = generate(*flags, "--prompt=the cat", "--top_p=0.9", "--seed=7")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["sample"] for record in records] == [0, 1]
    assert all(0 < len(record["tokens"]) <= 5 for record in records)
    for wrong, message in (
        ("--top_p=0", "--top_p=0: must be in (0, 1]"),
        ("--max_new_tokens=5000", "nearest valid value --max_new_tokens="),
        ("--run=/no/such", "/no/such: no such run directory"),
        ("--step=3", "has no checkpoint of it"),
    ):
        done = generate(*flags, "--prompt=the cat", wrong)
        assert done.returncode == 2 and not done.stdout
        assert message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
