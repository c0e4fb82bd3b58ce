"""`tools.esft` on a run that nobody trained: scored, selected, compared; mistakes are one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import esft_runs
import numpy as np
import pytest

from moejax.config import ConfigError, read_json
from moejax.data.tasks import open_task, render
from moejax.finetune.formats import read_selection, read_summary
from moejax.finetune.sampling import open_task_documents
from moejax.probe import OpenedRun

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> OpenedRun:
    return esft_runs.opened(tmp_path_factory.mktemp("esft_commands") / "base")


def write_task(path: Path, word: str) -> str:
    lines = [
        {"prompt": f"say {word} {n}", "answer": f"{word} " * (n % 5 + 1), "document": f"d{n}"}
        for n in range(60)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"task:files:{path}"


def test_a_task_is_scored_on_its_training_examples_alone(base: OpenedRun, tmp_path: Path) -> None:
    spec = write_task(tmp_path / "mine.jsonl", "yes")
    documents = open_task_documents(base, spec)
    examples = open_task(spec).examples("train")
    assert documents.count == len(examples) < 60
    tokenizer = base.dataset.tokenizer
    for number in (0, documents.count - 1):
        ids = documents.ids(number)
        assert ids[-1] == tokenizer.eos_id
        assert tokenizer.decode(ids[:-1]) == "".join(render(examples[number]))
        assert f"User: {examples[number].prompt}\n\nAssistant: yes" in tokenizer.decode(ids[:-1])
    assert documents.name.startswith("files-")
    with pytest.raises(ConfigError, match="--template="):
        open_task_documents(base, spec, template="{answer}")


def test_an_empty_training_split_is_refused(base: OpenedRun, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(ConfigError, match="is empty"):
        open_task_documents(base, f"task:files:{tmp_path}/none.jsonl")


def esft(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.esft", *words],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
        env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_score_select_overlap_and_groups(base: OpenedRun, tmp_path: Path) -> None:
    folders = []
    for word in ("yes", "other"):
        spec = write_task(tmp_path / f"{word}.jsonl", word)
        done = esft("score", f"--run={base.root}", f"--task={spec}", "--samples=4", "--length=64")
        assert done.returncode == 0, done.stderr
        folders.append(Path(done.stdout.split(": ")[0]).parent)
    assert folders[0] != folders[1] and folders[0].parent == base.root / "esft"
    scores = read_summary(folders[0] / "summary.json")
    assert (scores.origin.samples, scores.origin.tokens) == (8, 256)

    given = [f"--summary={folder}" for folder in folders]
    done = esft("select", given[0], "--score=token", f"--run={base.root}")
    assert done.returncode == 0, done.stderr
    chosen = read_selection(folders[0] / "expert_config_token_0.2.json")
    assert f"{chosen.count} of 21 experts by token p=0.2" in done.stdout
    out = tmp_path / "both.json"
    done = esft("select", *given, "--random", "--seed=3", f"--out={out}")
    assert done.returncode == 0, done.stderr
    both = read_selection(out)
    assert both.seed == 3 and "+" in both.origin.task and set(both.experts) == {1, 2, 3, 4}

    done = esft("overlap", *given)
    assert done.returncode == 0 and "1.000" in done.stdout, done.stderr
    found = read_json(base.root / "esft" / "overlap.json")
    assert found["tasks"] == [folder.name for folder in folders]
    assert np.shape(found["jaccard"]) == (2, 2)
    done = esft("select", given[0], "--p=0.3", "--group_size=2", f"--run={base.root}")
    assert done.returncode == 0, done.stderr
    grouped = read_selection(folders[0] / "expert_config_gate_0.3_groups2.json")
    (row,) = [
        one
        for one in read_json(folders[0] / "analysis.json")["grouping"]
        if (one["affinity"], one["size"], one["score"]) == ("cooccurrence", 2, "gate")
    ]
    for layer, experts in grouped.experts.items():
        pairs = [set(group) for group in row["groups"][str(layer)]]
        assert all(pair <= set(experts) or not pair & set(experts) for pair in pairs)
    done = esft("groups", given[0])
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 13, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "words, message",
    [
        (("selct",), "selct: known: score, select, overlap, groups; did you mean 'select'?"),
        (("score", "--task=law"), "--run: is required"),
        (("score", "--run=x"), "--task: is required"),
        (("score", "--run=x", "--task=law", "--p=0.1"), "--p: score has no such flag"),
        (("select", "--summary=none.json"), "none.json: no such file"),
        (("select", "--summary=x", "--seed=1"), "x: no such file"),
        (("overlap", "--p=0"), "--summary: is required"),
        (("overlap", "--group_size=2"), "--group_size: overlap has no such flag"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], message: str) -> None:
    done = esft(*words)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
