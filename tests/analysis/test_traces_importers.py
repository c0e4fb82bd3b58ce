"""Traces of other systems: round trips, joins, and files that are damaged or odd."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moejax.analysis.runs import load_runs
from moejax.analysis.traces import EMPTY_SLOT, find_traces, read_labels, read_trace
from moejax.analysis.traces.importers import import_arrays, import_jsonl, write_imported
from moejax.analysis.traces.importers import router_jsonl as jsonl_module
from moejax.config import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]


def table(rng: np.random.Generator, tokens: int, layers: int = 3, k: int = 2, e: int = 6) -> Any:
    """`(T, L, k)` ids."""
    rows = [[rng.permutation(e)[:k] for _ in range(layers)] for _ in range(tokens)]
    return np.array(rows, np.uint8).reshape(tokens, layers, k)


def refused(action: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        action()
    assert words in str(caught.value) and "\n" not in str(caught.value)


# ---- arrays --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_arrays_of_requests_are_joined(
    dtype: Any, rng: np.random.Generator, tmp_path: Path
) -> None:
    tables = [table(rng, tokens).astype(dtype) for tokens in (4, 1, 7)]
    files = [tmp_path / f"{index}.npy" for index in range(3)]
    for file, one in zip(files, tables, strict=True):
        np.save(file, one)
    trace = import_arrays(files, experts=6).trace
    wanted = np.concatenate(tables).swapaxes(0, 1)
    np.testing.assert_array_equal(trace.expert_LTK, wanted)
    assert trace.sequence_T.tolist() == [0] * 4 + [1] + [2] * 7
    assert trace.width_LE.tolist() == [[1] * 6] * 3
    assert (trace.active_LT == 2).all() and (trace.width_LT == 2).all()
    assert trace.weight_LTK is None and trace.token_T is None


def test_weights_labels_and_empty_slots_come_along(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    ids = table(rng, 5).astype(np.int32)
    ids[2, 1, 1] = -1
    weights = rng.random(ids.shape).astype(np.float16)
    np.savez(
        tmp_path / "a.npz",
        routed_experts=ids,
        weights=weights,
        token_T=np.arange(5),
        sequence_T=np.array([3, 3, 4, 4, 4]),
        another=np.zeros(2),
    )
    trace = import_arrays([tmp_path / "a.npz"], step=9).trace
    assert trace.expert_LTK[1, 2].tolist() == [ids[2, 1, 0], EMPTY_SLOT]
    np.testing.assert_array_equal(trace.weight_LTK, weights.swapaxes(0, 1))
    assert trace.sequence_T.tolist() == [3, 3, 4, 4, 4] and trace.step == 9
    assert trace.num_experts == ids.max() + 1


def test_layers_without_a_router_are_left_out(rng: np.random.Generator, tmp_path: Path) -> None:
    ids = table(rng, 5, layers=4)
    ids[:, [0, 2]] = 0
    np.save(tmp_path / "a.npy", ids)
    imported = import_arrays([tmp_path / "a.npy"], experts=6)
    assert imported.trace.layers_L.tolist() == [1, 3]
    assert imported.layer_names == ("layer 1", "layer 3")
    assert "left out: [0, 2]" in imported.notes[0]
    np.save(tmp_path / "one.npy", np.zeros((5, 2, 1), np.uint8))  # a top-1 router may do that
    assert import_arrays([tmp_path / "one.npy"]).trace.layers_L.tolist() == [0, 1]


def test_arrays_that_are_no_trace_are_one_line(rng: np.random.Generator, tmp_path: Path) -> None:
    good, file = table(rng, 5), tmp_path / "x.npy"
    np.save(tmp_path / "good.npy", good)

    def saved(array: Any) -> Callable[[], Any]:
        np.save(file, array)
        return lambda: import_arrays([file], experts=6)

    refused(saved(good[0]), "x.npy: uint8 of shape (3, 2); expected integers")
    refused(saved(good.astype(float)), "expected integers of shape (tokens, layers, k)")
    refused(saved(np.full((2, 3, 2), 6)), "token 0 of layer 0 has the expert 6; 6 experts are 0")
    refused(saved(np.full((2, 3, 2), -7)), "has the expert -7")
    refused(saved(np.full((2, 3, 2), 5)), "token 0 of layer 0 has the expert 5 twice")
    refused(saved(np.array([[[print]]], object)), "never loaded")
    np.save(file, good)
    file.write_bytes(file.read_bytes()[:-3])
    refused(lambda: import_arrays([file]), "x.npy: cut short, 27 of 30 bytes")
    file.write_bytes(b"\x93NUMPY" + b"\xff" * 40)
    refused(lambda: import_arrays([file]), "x.npy: not a NumPy array")
    refused(lambda: import_arrays([tmp_path / "no.npy"]), "no.npy: cannot be read")
    refused(lambda: import_arrays([]), "no file")
    np.save(file, table(rng, 5, layers=2))
    both = [tmp_path / "good.npy", file]
    refused(lambda: import_arrays(both), "(layers, k) is (2, 2), but (3, 2) in good.npy")
    np.savez(tmp_path / "a.npz", experts=good, weights=np.ones((5, 3, 2)))
    np.savez(tmp_path / "b.npz", experts=good)
    refused(lambda: import_arrays([tmp_path / f"{n}.npz" for n in "ab"]), "'weights' is in some")
    np.savez(tmp_path / "c.npz", ids=good)
    refused(lambda: import_arrays([tmp_path / "c.npz"]), "needs one array of ids named")
    np.savez(tmp_path / "d.npz", experts=good, domain_T=np.full(5, 300))
    refused(lambda: import_arrays([tmp_path / "d.npz"]), "domain_T: 300 does not fit uint8")


# ---- JSON lines ----------------------------------------------------------------------------------


def record(ids: Any, layer: int, *, step: int = 0, rank: int = 0, **other: Any) -> dict[str, Any]:
    """One line as Megatron-LM writes it."""
    found = {"step": step, "stage": "pre_dispatch", "block": "decoder", "layer": layer}
    found |= {"rank": rank, "num_tokens": len(ids), "topk": ids.shape[1]}
    return found | {"top_indices": ids.tolist()} | other


def lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


def test_ranks_layers_steps_and_blocks_are_joined(rng: np.random.Generator, tmp_path: Path) -> None:
    """Two data ranks, two micro-batches in the first step, a dense layer 1, a block of its own."""
    sizes = {(0, 0): [3, 2], (0, 1): [4, 4], (1, 0): [1], (1, 1): [6]}
    places = [("decoder", {}, 0), ("decoder", {}, 2), ("mtp", {"mtp_idx": 0}, 0)]
    made: dict[tuple[int, int, int], list[Any]] = {}
    by_rank: dict[int, list[Any]] = {0: [], 1: []}
    for (step, rank), counts in sizes.items():
        for count in counts:
            for row, (block, extra, layer) in enumerate(places):
                ids = table(rng, count, layers=1, k=2 + (row == 2))[:, 0]
                made.setdefault((step, rank, row), []).append(ids)
                by_rank[rank].append(
                    record(ids, layer, step=step, rank=rank, **(extra | {"block": block}))
                )
    files = [lines(tmp_path / f"router_trace_rank{rank}.jsonl", by_rank[rank]) for rank in (1, 0)]
    imported = import_jsonl(files, experts=6)
    trace = imported.trace
    assert trace.layers_L.tolist() == [0, 2, 3] and trace.step == 0
    assert imported.layer_names == ("decoder 0", "decoder 2", "mtp 0.0")
    assert trace.expert_LTK.shape == (3, 20, 3)
    for row in range(3):
        wanted = np.concatenate(
            [ids for step in (0, 1) for rank in (0, 1) for ids in made[step, rank, row]]
        )
        np.testing.assert_array_equal(trace.expert_LTK[row, :, : wanted.shape[1]], wanted)
        assert (trace.expert_LTK[row, :, wanted.shape[1] :] == EMPTY_SLOT).all()
    assert "2 steps joined" in imported.notes[0]
    one = import_jsonl(files, experts=6, step=1).trace
    assert one.step == 1 and one.num_tokens == 7
    np.testing.assert_array_equal(one.expert_LTK, trace.expert_LTK[:, -7:])
    refused(lambda: import_jsonl(files, step=5), "--step=5: there is no record of it; nearest 1")


def test_pipeline_ranks_hold_different_layers(rng: np.random.Generator, tmp_path: Path) -> None:
    ids = [table(rng, 4, layers=1)[:, 0] for _ in range(4)]
    layers = (0, 0, 1, 1)
    made = [record(ids[rank], layer, rank=rank) for rank, layer in enumerate(layers)]
    path = lines(tmp_path / "x.jsonl", made)
    trace = import_jsonl([path], experts=6).trace
    np.testing.assert_array_equal(trace.expert_LTK[0], np.concatenate(ids[:2]))
    np.testing.assert_array_equal(trace.expert_LTK[1], np.concatenate(ids[2:]))


GOOD = {"step": 0, "layer": 0, "rank": 0, "num_tokens": 2, "topk": 1, "top_indices": [[0], [1]]}


@pytest.mark.parametrize(
    "second, words",
    [
        ("{", "x.jsonl: line 2: is not JSON, or cut short"),
        ("[" * 100_000, "line 2: is not JSON"),
        ([1], "line 2: is not a JSON object"),
        ({"layer": None}, "line 2: layer is None, expected a whole number"),
        ({"layer": True}, "line 2: layer is True"),
        ({"layer": -1}, "line 2: layer is -1"),
        ({"layer": 1e99}, "line 2: layer is 1e+99"),
        ({"step": "0\n"}, "line 2: step is 0\\u000a"),
        ({"num_tokens": 3}, "top_indices holds 2 tokens, num_tokens is 3"),
        ({"topk": 2}, "token 0 has 1 experts, topk is 2"),
        ({"top_indices": [[0], [1, 2]]}, "token 1 has 2 experts, topk is 1"),
        ({"top_indices": "01"}, "holds no list of tokens"),
        ({"top_indices": [[0], 1]}, "token 1 has no list of experts"),
        ({"top_indices": [[0], [1.5]]}, "something else than ids"),
        ({"top_indices": [[0], [True]]}, "something else than ids"),
        ({"top_indices": [[True], [True]]}, "something else than ids"),
        ({"top_indices": [[0], ["1"]]}, "something else than ids"),
        ({"top_indices": [[0], [10**30]]}, "something else than ids"),
        ({"top_indices": [[0], [-2]]}, "something else than ids"),
        ({"top_indices": [[[0]], [[1]]]}, "something else than ids"),
        ({"block": 3}, "line 2: block is '3', expected a name"),
        ({"stage": "other"}, "line 2: stage is 'other', this reader knows 'pre_dispatch'"),
        ({"layer": 1, "num_tokens": 1, "top_indices": [[0]]}, "decoder 1 of step 0 has 1 tokens"),
        ({"layer": 0, "step": 1}, ""),
        ({"layer": 1, "step": 1}, "step 0 ends without decoder 1, which other steps have"),
    ],
)
def test_lines_that_do_not_fit_are_named(second: Any, words: str, tmp_path: Path) -> None:
    if isinstance(second, dict):
        second = GOOD | second
    text = second if isinstance(second, str) else json.dumps(second)
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + text + "\n")
    if words:
        refused(lambda: import_jsonl([path]), words)
    else:
        assert import_jsonl([path]).trace.num_tokens == 4


def test_keys_that_are_missing_are_named(tmp_path: Path) -> None:
    for key in GOOD:
        path = lines(tmp_path / "x.jsonl", [{k: v for k, v in GOOD.items() if k != key}])
        refused(lambda path=path: import_jsonl([path]), "x.jsonl: line 1: ")
    refused(lambda: import_jsonl([lines(tmp_path / "x.jsonl", [])]), "x.jsonl: no record")
    refused(lambda: import_jsonl([tmp_path / "no.jsonl"]), "no.jsonl: cannot be read")


def test_lines_and_totals_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lines(tmp_path / "x.jsonl", [GOOD, GOOD | {"step": 1}])
    monkeypatch.setattr(jsonl_module, "MAX_ARRAY_BYTES", 6)
    refused(lambda: import_jsonl([path]), "line 2: more than 3 expert ids")
    assert import_jsonl([path], step=1).trace.num_tokens == 2
    monkeypatch.setattr(jsonl_module, "MAX_LINE_BYTES", 20)
    refused(lambda: import_jsonl([path]), "line 1: longer than 20 bytes")


# ---- the directory -------------------------------------------------------------------------------


def test_the_directory_reads_like_a_run(rng: np.random.Generator, tmp_path: Path) -> None:
    ids = table(rng, 5)
    np.savez(tmp_path / "a.npz", experts=ids, token_T=np.arange(5))
    imported = import_arrays([tmp_path / "a.npz"], experts=6, step=3)
    out = tmp_path / "other"
    path = write_imported(out, imported, "mine")
    assert path == out / "trace/mine/3.npz"
    (file,) = find_traces(out)
    assert (file.corpus, file.step) == ("mine", 3)
    np.testing.assert_array_equal(read_trace(file.path).expert_LTK, ids.swapaxes(0, 1))
    labels = read_labels(file.labels)
    assert labels.corpus == "mine" and len(labels.tokens_sha256) == 64
    runs, excluded = load_runs([str(out)])
    assert excluded == [] and len(runs[0].model.records("layers")) == 3
    assert runs[0].model.records("layers")[0].number("experts") == 6
    before = path.read_bytes()
    assert write_imported(out, imported, "mine").read_bytes() == before
    for corpus in ("", "a/b", "..", ".x", "x" * 90):
        refused(lambda corpus=corpus: write_imported(out, imported, corpus), "--corpus=")
    (out / "config.json").write_text("{}")
    refused(lambda: write_imported(out, imported), "holds a run of its own")
    refused(lambda: write_imported(path, imported), "is a file; --out needs a directory")


def test_the_command_imports(rng: np.random.Generator, tmp_path: Path) -> None:
    for index in range(2):
        np.save(tmp_path / f"request_{index}.npy", table(rng, 4))

    def run(*arguments: str) -> tuple[int, str, str]:
        code = "import sys; sys.modules['jax'] = None\nimport runpy\n"
        code += f"sys.argv = ['trace', 'import', *{arguments!r}]\n"
        code += "runpy.run_module('tools.trace', run_name='__main__')"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
        )
        return done.returncode, done.stdout, done.stderr

    out = tmp_path / "out"
    code, said, notes = run("--format=array", f"--file={tmp_path}/request_*.npy", f"--out={out}")
    assert (code, said) == (0, f"{out}/trace/imported/0.npz: 8 tokens, 3 MoE layers\n"), notes
    assert "one more than the highest id" in notes
    code, said, notes = run("--format=arrays", f"--out={out}")
    assert (code, said) == (2, "")
    assert notes == "error: --format='arrays': one of array, jsonl; did you mean 'array'?\n"
