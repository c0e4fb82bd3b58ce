"""The same experts before and after training: numbers against loops, and which runs are a pair."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from run_factory import make_run, save, write_json

from moejax.analysis.evidence import Evidence
from moejax.analysis.figures.traced import lineage
from moejax.analysis.routing.change import frequency_change
from moejax.analysis.runs import find_runs, load_runs
from moejax.analysis.view import views

NAMES = ("de", "en", "fr")
LAYERS, EXPERTS, TOKENS, LENGTH = 2, 6, 480, 16


def choices(rng, share):
    """One expert per token: expert 0 with probability `share`, else one of the others."""
    rest = 1 + rng.integers(0, EXPERTS - 1, (LAYERS, TOKENS))
    return np.where(rng.random((LAYERS, TOKENS)) < share, 0, rest).astype(np.uint16)[..., None]


def test_change_equals_loops():
    rng = np.random.default_rng(1)
    before, after = choices(rng, 0.3), choices(rng, 0.6)
    label_T = (np.arange(TOKENS) // LENGTH) % 3 - 1  # one of three kinds has no label
    sequence_T = np.arange(TOKENS) // LENGTH
    mask = np.ones((LAYERS, EXPERTS), bool)
    got = frequency_change(before, after, mask, label_T, 2, sequence_T)
    for layer, label, expert in np.ndindex(LAYERS, 2, EXPERTS):
        sums, sizes = [], []
        for sequence in np.unique(sequence_T[label_T == label]):
            mine = (sequence_T == sequence) & (label_T == label)
            old, new = (x[layer, mine, 0] == expert for x in (before, after))
            sums.append(int(new.sum()) - int(old.sum()))
            sizes.append(int(mine.sum()))
        difference = sum(sums) / sum(sizes)
        assert got.difference[layer, label, expert] == pytest.approx(difference)
        rest = sum((s - difference * n) ** 2 for s, n in zip(sums, sizes, strict=True))
        count = len(sums)
        assert count == 10
        half = 2.262157 * np.sqrt(count / (count - 1) * rest) / sum(sizes)
        assert got.half_width[layer, label, expert] == pytest.approx(half, rel=1e-6)
    old = [(before[0, label_T == 1, 0] == e).mean() for e in range(EXPERTS)]
    new = [(after[0, label_T == 1, 0] == e).mean() for e in range(EXPERTS)]
    np.testing.assert_allclose(got.before[0, 1], old)
    assert got.correlation[0, 1] == pytest.approx(np.corrcoef(old, new)[0, 1])
    assert got.moved[0, 0] > 0.1  # expert 0 was planted to move


def test_nothing_moves_where_nothing_changed():
    before = choices(np.random.default_rng(2), 0.4)
    mask = np.ones((LAYERS, EXPERTS), bool)
    label_T, sequence_T = np.zeros(TOKENS, int), np.arange(TOKENS) // LENGTH
    same = frequency_change(before, before, mask, label_T, 1, sequence_T)
    assert (same.difference == 0).all() and (same.moved == 0).all()
    np.testing.assert_allclose(same.correlation, 1.0)
    with pytest.raises(ValueError, match="differ"):
        frequency_change(before, before[:, 1:], mask, label_T, 1, sequence_T)


def traced(root, name, seed, expert_LTK, cut):
    """A run of cut FFNs with a trace of three languages."""
    run = make_run(
        root / name, "top_k", seed=seed, layers=LAYERS, experts=EXPERTS, steps=60,
        trace_tokens=TOKENS,
    )  # fmt: skip
    (path,) = (p for p in (run / "trace").iterdir() if p.is_file())
    with np.load(path) as file:
        arrays = dict(file)
    arrays |= {
        "format_version": np.int32(2),
        "token_T": np.arange(TOKENS, dtype=np.int32) % 50,
        "language_T": (np.arange(TOKENS) // LENGTH % len(NAMES)).astype(np.uint8),
        "sequence_T": (np.arange(TOKENS) // LENGTH).astype(np.int32),
        "expert_LTK": expert_LTK,
        "active_LT": np.ones((LAYERS, TOKENS), np.uint16),
    }
    save(run / "trace" / "languages" / path.name, arrays)
    labels = {"format_version": 1, "corpus": "languages", "languages": list(NAMES)}
    write_json(run / "trace" / "languages" / "labels.json", labels)
    save(run / "surgery.npz", {"format_version": np.int32(1), "expert_LF": cut})
    return run


def seen(root):
    roots = [root / "before", root / "after"]
    return Evidence(views(load_runs(find_runs(roots))[0]), roots)


@pytest.fixture
def runs(tmp_path):
    rng = np.random.default_rng(3)
    cut = np.arange(LAYERS * 12, dtype=np.int32).reshape(LAYERS, 12) % EXPERTS
    first = traced(tmp_path, "before", 0, choices(rng, 0.2), cut)
    after = traced(tmp_path, "after", 1, choices(rng, 0.9), cut)
    return tmp_path, first, after, cut


def test_two_runs_of_one_cut_are_a_pair(runs):
    root, _, after, cut = runs
    figure = lineage.build(seen(root))
    assert [label for label, _ in figure.tabs] == ["maps", "by layer"]
    (maps,) = figure.tabs[0][1]
    assert len(maps.grids) == len(NAMES) and maps.grids[0].value_RC.shape == (LAYERS, EXPERTS)
    header, *rows = figure.rows
    table = [dict(zip(header, row, strict=True)) for row in rows]
    assert len(table) == LAYERS * len(NAMES) * EXPERTS
    for row in table:
        if row["expert"] == 0:
            assert abs(row["change"]) == pytest.approx(0.7, abs=0.12)
            assert abs(row["change"]) > row["half_width_95"]
    other = cut.copy()
    other[0, :2] = other[0, 1::-1]
    save(after / "surgery.npz", {"format_version": np.int32(1), "expert_LF": other})
    assert "same cut" in lineage.build(seen(root)).empty


def test_runs_that_are_no_pair(runs):
    root, first, after, _ = runs
    (after / "surgery.npz").write_bytes(b"not a zip")
    assert "same cut" in lineage.build(seen(root)).empty
    shutil.copyfile(first / "surgery.npz", after / "surgery.npz")
    assert not lineage.build(seen(root)).empty
    (path,) = (after / "trace" / "languages").glob("*.npz")
    with np.load(path) as file:
        arrays = dict(file)
    save(path, arrays | {"token_T": arrays["token_T"][::-1].copy()})
    assert "same cut" in lineage.build(seen(root)).empty
