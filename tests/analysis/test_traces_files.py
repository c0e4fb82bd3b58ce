"""Trace files and their labels: what is written comes back, what is damaged is one line."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moejax.analysis.arrays import ArrayFileError
from moejax.analysis.traces import (
    COLUMNS,
    EMPTY_SLOT,
    Labels,
    Trace,
    TraceError,
    find_traces,
    make_trace,
    read_labels,
    read_trace,
    trace_bytes,
    write_labels,
    write_trace,
)
from moejax.analysis.traces.labels import tokens_hash
from moejax.config import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
LAYERS, EXPERTS, TOKENS, SLOTS = 3, 5, 11, 2


def random_arrays(rng: np.random.Generator, layers: int = LAYERS, tokens: int = TOKENS) -> dict:
    """Every array of a trace, in dtypes that NumPy likes; the last layer has an expert less."""
    width_LE = rng.integers(1, 9, (layers, EXPERTS))
    width_LE[layers - 1 :, -1] = -1
    choices = [
        [rng.permutation(EXPERTS - (layer == layers - 1))[:SLOTS] for _ in range(tokens)]
        for layer in range(layers)
    ]
    expert_LTK = np.array(choices, np.int64).reshape(layers, tokens, SLOTS)
    expert_LTK[rng.random(expert_LTK.shape) < 0.2] = EMPTY_SLOT
    shape = {"L": layers, "E": EXPERTS, "T": tokens, "K": SLOTS, "Q": 5}
    arrays = {
        "layers_L": np.arange(layers) * 2,
        "width_LE": width_LE,
        "expert_LTK": expert_LTK,
        "need_p_Q": np.array([0.5, 0.6, 0.7, 0.8, 0.9]),
        "need_LTQ": np.where(
            rng.random((layers, tokens, 5)) < 0.3, np.nan, rng.integers(1, 6, (layers, tokens, 5))
        ),
    }
    for name, column in COLUMNS.items():
        size = tuple(shape[axis] for axis in column.axes)
        if name in arrays or name in ("active_LT", "width_LT"):
            continue
        if np.dtype(column.held).kind == "f":
            arrays[name] = rng.standard_normal(size).astype(np.float16)
        else:
            arrays[name] = rng.integers(0, 200, size)
    return arrays


def same(a: Trace, b: Trace) -> None:
    assert a.arrays().keys() == b.arrays().keys()
    for name, array in a.arrays().items():
        other = b.arrays()[name]
        assert array.dtype == other.dtype == np.dtype(COLUMNS[name].held), name
        np.testing.assert_array_equal(array, other, err_msg=name)


@pytest.mark.parametrize("layers, tokens", [(LAYERS, TOKENS), (1, 1), (2, 0), (0, 4)])
def test_everything_comes_back(
    layers: int, tokens: int, rng: np.random.Generator, tmp_path: Path
) -> None:
    arrays = random_arrays(rng, layers, tokens)
    trace = make_trace(arrays, 12)
    assert list(trace.arrays()) == list(COLUMNS)
    write_trace(tmp_path / "a/12.npz", trace)
    back = read_trace(tmp_path / "a/12.npz")
    same(back, trace)
    assert (back.step, back.num_layers, back.num_tokens) == (12, layers, tokens)
    assert trace_bytes(back) == trace_bytes(trace) == (tmp_path / "a/12.npz").read_bytes()
    for layer in range(layers):
        assert back.exists_LE[layer].sum() == EXPERTS - (layer == layers - 1)
        for token in range(tokens):
            held = [e for e in arrays["expert_LTK"][layer, token] if e != EMPTY_SLOT]
            assert back.active_LT[layer, token] == len(held)
            assert back.width_LT[layer, token] == sum(arrays["width_LE"][layer, e] for e in held)


def test_the_bytes_do_not_depend_on_the_clock_or_the_layout(rng: np.random.Generator) -> None:
    arrays = random_arrays(rng)
    first = trace_bytes(make_trace(arrays))
    others = {name: np.asfortranarray(array) for name, array in reversed(arrays.items())}
    assert trace_bytes(make_trace(others)) == first
    assert b"\x21\x00" in first[:40]  # 1980-01-01, as every entry


def test_optional_arrays_may_be_absent(rng: np.random.Generator, tmp_path: Path) -> None:
    few = {name: random_arrays(rng)[name] for name, c in COLUMNS.items() if c.required}
    write_trace(tmp_path / "few.npz", make_trace(few))
    back = read_trace(tmp_path / "few.npz")
    assert list(back.arrays()) == [*few, "active_LT", "width_LT"] and back.step is None


def test_old_traces_of_the_trainer_are_read(rng: np.random.Generator, tmp_path: Path) -> None:
    """Version 1: what `RunDir.write_arrays` writes."""
    arrays = random_arrays(rng)
    own = {"layers_L": np.int32, "width_LE": np.int32, "expert_LTK": np.uint16}
    np.savez_compressed(
        tmp_path / "7.npz",
        format_version=np.int32(1),
        **{name: arrays[name].astype(dtype) for name, dtype in own.items()},
    )
    assert read_trace(tmp_path / "7.npz").step == 7


@pytest.mark.parametrize(
    "change, words",
    [
        ({"layers_L": None}, "layers_L: is missing"),
        ({"layers_L": np.array([0, 0, 2])}, "must ascend"),
        ({"layers_L": np.array([-1, 0, 2])}, "must ascend"),
        ({"class_T": np.full(TOKENS, 256)}, "class_T: 256 does not fit uint8"),
        ({"class_T": np.full(TOKENS, -1)}, "class_T: -1 does not fit uint8"),
        ({"class_T": np.zeros(TOKENS)}, "class_T: dtype float64, expected uint8"),
        ({"loss_T": np.array(["x"] * TOKENS)}, "loss_T: dtype"),
        ({"loss_T": np.zeros(TOKENS - 1)}, "loss_T: axis T is 10 but 11 in 'expert_LTK'"),
        ({"loss_T": np.zeros((TOKENS, 1))}, r"shape \(11, 1\), expected axes \[T\]"),
        ({"width_LE": np.full((LAYERS, EXPERTS), -2)}, "-2 is no width"),
        ({"expert_LTK": np.full((LAYERS, TOKENS, SLOTS), 4)}, "row 2 has the expert 4, but"),
        ({"expert_LTK": np.full((LAYERS, TOKENS, SLOTS), 70000)}, "70000 does not fit uint16"),
        ({"need_p_Q": None}, "goes together"),
        ({"other": np.zeros(3)}, "other: no array of a trace"),
    ],
)
def test_arrays_that_do_not_fit_are_named(
    change: dict, words: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    arrays = random_arrays(rng) | change
    arrays = {name: array for name, array in arrays.items() if array is not None}
    with pytest.raises(TraceError, match=words):
        make_trace(arrays)
    np.savez(tmp_path / "1.npz", **arrays)
    if "other" not in change:
        with pytest.raises(ArrayFileError) as caught:
            read_trace(tmp_path / "1.npz")
        assert str(caught.value).startswith("1.npz:") and "\n" not in str(caught.value)


def test_files_of_strangers_are_one_line(rng: np.random.Generator, tmp_path: Path) -> None:
    path = tmp_path / "1.npz"
    whole = trace_bytes(make_trace(random_arrays(rng)))
    for size in range(0, len(whole), len(whole) // 23):
        path.write_bytes(whole[:size])
        with pytest.raises(ArrayFileError):
            read_trace(path)
    pickled = random_arrays(rng) | {"loss_T": np.array([print] * TOKENS, object)}
    np.savez(path, **pickled)
    with pytest.raises(ArrayFileError, match="never loaded"):
        read_trace(path)
    np.savez(path, **random_arrays(rng), format_version=3)
    with pytest.raises(ArrayFileError, match="format_version 3, this reader knows 1 to 2"):
        read_trace(path)


def test_the_traces_of_a_run_are_found(rng: np.random.Generator, tmp_path: Path) -> None:
    trace = make_trace(random_arrays(rng))
    for name in ("10", "2", "b/3", "a/30", "a/4"):
        write_trace(tmp_path / f"trace/{name}.npz", trace)
    (tmp_path / "trace/a/labels.json").write_text("{}")
    (tmp_path / "trace/a/notes.npz").write_text("")
    found = find_traces(tmp_path)
    places = [("", 2), ("", 10), ("a", 4), ("a", 30), ("b", 3)]
    assert [(file.corpus, file.step) for file in found] == places
    assert found[2].labels == tmp_path / "trace/a/labels.json"
    assert find_traces(tmp_path / "nowhere") == []


# ---- labels --------------------------------------------------------------------------------------

LABELS = Labels(
    corpus="mine",
    spec="files:*.txt",
    part="all",
    domains=("law", "code"),
    languages=("en",),
    parts_of_speech=("NOUN",),
    token_classes=("special",),
    difficulties=(1.0, 2.5),
    sources=({"licence": "MIT", "bytes": 3.0},),
    tokens_sha256="ab",
    tokenizer_sha256="cd",
    pieces=("a", " b"),
)


def test_labels_come_back(tmp_path: Path) -> None:
    write_labels(tmp_path / "labels.json", LABELS)
    back = read_labels(tmp_path / "labels.json")
    assert back == LABELS
    assert back.domain(1) == "code" and back.domain(7) == "domain 7"
    assert back.piece(1) == " b" and back.piece(-1) == "token -1"
    assert back.language(0) == "en" and back.language(255) == "language 255"


def test_labels_of_strangers_are_made_safe(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    hostile = {
        "format_version": 1,
        "corpus": ["x"],
        "domains": ["a\u202eb", 3, "<b>" * 100],
        "languages": {"x": 1},
        "pieces": ["\n", "\x1b[31m", "x" * 1000],
        "difficulties": [1, True, "2", 10**301, None],
        "sources": [{"licence\n": "MIT\u200b", "bytes": 10**301, "list": [1]}, "x"],
    }
    path.write_text(json.dumps(hostile))
    found = read_labels(path)
    assert found.corpus == "" and found.languages == ()
    assert found.domains[:2] == ("a\\u202eb", "") and len(found.domains[2]) == 80
    assert found.pieces[:2] == ("\\u000a", "\\u001b[31m") and len(found.pieces[2]) == 64
    assert found.difficulties == (1.0,)
    assert found.sources == ({"licence\\u000a": "MIT\\u200b"},)


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "no such file"),
        ("[1]", "is not a JSON object"),
        ("{", "cut short"),
        ('{"format_version": 9}', "format_version is 9"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_labels_that_cannot_be_read_are_one_line(
    content: str | None, words: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "labels.json").write_text(content)
    with pytest.raises(ConfigError, match=words):
        read_labels(tmp_path / "labels.json")


def test_the_names_of_a_trainers_trace_are_in_data_json(tmp_path: Path) -> None:
    record = {"format_version": 1, "domains": ["x"], "tokenizer_hash": "ef", "corpus": "embedded"}
    (tmp_path / "data.json").write_text(json.dumps(record))
    found = read_labels(tmp_path / "data.json")
    assert (found.domains, found.tokenizer_sha256, found.corpus) == (("x",), "ef", "embedded")


def test_the_hash_of_tokens_sees_ids_order_and_sequences(rng: np.random.Generator) -> None:
    trace = make_trace(random_arrays(rng))
    assert trace.token_T is not None and trace.sequence_T is not None
    others = [
        dataclasses.replace(trace, token_T=trace.token_T[::-1]),
        dataclasses.replace(trace, sequence_T=trace.sequence_T + 1),
    ]
    assert len({tokens_hash(t) for t in (trace, *others)}) == 3
    assert tokens_hash(dataclasses.replace(trace, token_T=None)) == ""


# ---- the document --------------------------------------------------------------------------------


def test_the_document_has_every_array() -> None:
    text = (REPOSITORY / "docs/traces.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (\w+)(?: \(\w+\))? \|", text, re.M))
    stored = {name: np.dtype(column.stored).name for name, column in COLUMNS.items()}
    assert rows == stored


def test_traces_need_no_jax() -> None:
    code = (
        "import sys; sys.modules['jax'] = None\n"
        "import moejax.analysis.traces, moejax.analysis.traces.importers, tools.trace"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
