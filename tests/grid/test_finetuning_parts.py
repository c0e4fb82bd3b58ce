"""A comparison of fine-tunings: its parts and their order, the loop that runs them, refusals."""

from __future__ import annotations

import ast
import json
import os
import signal
import threading
import time

import pytest
from grid_files import REPOSITORY

from moejax.config import ConfigError
from moejax.grid.finetuning import (
    Comparison,
    Part,
    Places,
    Treatment,
    load_comparison,
    parts_of,
    run_parts,
)
from moejax.grid.finetuning.comparison import flag
from moejax.grid.finetuning.runner import Record, eta
from moejax.grid.load import load_grid, shipped_names

# A program of a study: appends its name to a log, then does what its flags say.
FAKE = """
import pathlib, sys, time
name, product, *rest = sys.argv[1:]
with open("ran.txt", "a") as file:
    file.write(name + chr(10))
if "fail" in rest:
    sys.exit("error: no luck")
if "sleep" in rest:
    print("sleeping", flush=True)
    time.sleep(60)
if "nothing" not in rest:
    pathlib.Path(product).write_text(name)
"""


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


def base_at(tmp_path, name="m1"):
    path = tmp_path / "bases" / name
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


METHODS = ("full", "lora", "multilora", "esft_gate", "esft_token", "esft_random")


def comparison(**changes):
    given = {"tasks": ("law", "code"), "treatments": tuple(map(Treatment, METHODS))}
    return Comparison(**given | changes)


# ---- parts


def test_every_part_comes_after_what_it_needs_and_once(tmp_path):
    bases = [base_at(tmp_path, "m1"), base_at(tmp_path, "m4")]
    parts = parts_of(comparison(), bases, tmp_path / "out")
    assert len({part.name for part in parts}) == len(parts)
    assert len({part.product for part in parts}) == len(parts)
    made = {base / "config.json" for base in bases}
    for part in parts:
        assert made.issuperset(part.needs), part.name
        made.add(part.product)
    kinds = [part.kind for part in parts]
    runs = 2 * 2 * 2 * len(METHODS)
    assert kinds.count("train") == runs and kinds.count("score") == runs + 4
    assert kinds.count("experts") == 4 and kinds.count("overlap") == 2
    assert kinds.count("spectrum") == 2 * 2 * 2 * 3
    # gate (which low-rank methods are matched to) and token once, random for either seed.
    assert kinds.count("select") == 2 * 2 * (2 + 2)
    assert parts[-1].kind == "report" and parts[-1].always
    seeds = [part.name[-1] for part in parts if part.kind == "train"]
    assert seeds == ["0"] * (runs // 2) + ["1"] * (runs // 2)


def test_low_rank_methods_train_as_much_as_the_selection(tmp_path):
    base = base_at(tmp_path)
    parts = {part.name: part for part in parts_of(comparison(), [base], tmp_path / "out")}
    lora, gate = parts["train m1-lora-law-s1"], parts["train m1-esft_gate-law-s1"]
    chosen = tmp_path / "out" / "selections" / "m1" / "law" / "esft_gate-p0.1.json"
    assert f"--config.match={chosen}" in lora.flags and f"--selection={chosen}" in gate.flags
    assert lora.needs == gate.needs == (chosen, base / "config.json")
    random = parts["train m1-esft_random-law-s1"]
    assert random.needs[0].name == "esft_random-p0.1-s1.json"
    select = next(part for part in parts.values() if part.product == random.needs[0])
    assert {"--random", "--seed=1", "--score=gate"} <= set(select.flags)
    free = parts_of(comparison(match=""), [base], tmp_path / "out")
    assert not any("match" in word for part in free for word in part.flags)


def test_a_base_that_is_trained_anew_outdates_what_reads_it(tmp_path):
    base = base_at(tmp_path)
    final = base / "final.json"

    def readers(need):
        parts = parts_of(comparison(seeds=(0,)), [base], tmp_path / "out")
        return {part.name for part in parts if need in part.needs}

    parts = parts_of(comparison(seeds=(0,)), [base], tmp_path / "out")
    own = {"score m1 law", "score m1 code", "experts m1 law", "experts m1 code"}
    expected = own | {part.name for part in parts if part.kind == "train"}
    assert readers(base / "config.json") == expected
    final.write_text("{}")
    assert readers(final) == expected and not readers(base / "config.json")
    score = next(one for one in parts_of(comparison(), [base], tmp_path / "out"))
    score.product.parent.mkdir()
    score.product.write_text("{}")
    (tmp_path / "out").mkdir()
    record = Record(tmp_path / "out" / "parts.json")
    record.add(score, time.time_ns(), 1.0)
    os.utime(final, (time.time() - 5,) * 2)
    assert record.done(score)
    os.utime(final, (time.time() + 5,) * 2)
    assert not record.done(score)


def test_overrides_and_thresholds_are_in_the_command(tmp_path):
    treatments = (
        Treatment("esft_gate", 0.05),
        Treatment("lora", overrides={"optimizer.lr": 0.01}, name="lora-fast"),
    )
    made = parts_of(
        comparison(treatments=treatments, overrides={"train.steps": "1e5 tokens"}, seeds=(7,)),
        [base_at(tmp_path)],
        tmp_path / "out",
        "quick=true",
    )
    parts = {part.name: part for part in made}
    gate = parts["train m1-esft_gate-p0.05-law-s7"]
    assert gate.flags[0] == "--config=configs/finetune.py:method=esft_gate,quick=true"
    assert {"--config.train.steps=1e5 tokens", "--config.seed=7"} <= set(gate.flags)
    assert "--config.optimizer.lr=0.01" in parts["train m1-lora-fast-law-s7"].flags
    assert flag("targets", ["attention"]) == "--config.targets=('attention',)"


def defined_flags(module):
    """Names of the flags that a program of the checkout defines."""
    tree = ast.parse((REPOSITORY / f"{module.replace('.', '/')}.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    return {
        call.args[0].value
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr.startswith("DEFINE_")
        if isinstance(call.args[0], ast.Constant)
    }


def test_programs_of_the_parts_have_the_flags(tmp_path):
    parts = parts_of(comparison(generate=2), [base_at(tmp_path)], tmp_path / "out")
    known = {part.module: defined_flags(part.module) for part in parts}
    for part in parts:
        for word in part.flags:
            if word.startswith("--"):
                name = word[2:].partition("=")[0].partition(".")[0]
                assert name in known[part.module], (part.name, word)


def test_refusals_are_one_line(tmp_path):
    base = base_at(tmp_path)
    twin = tmp_path / "other" / "m1"
    twin.mkdir(parents=True)
    (twin / "config.json").write_text("{}")
    cases = [
        (lambda: Treatment("esft_gates"), "did you mean 'esft_gate'"),
        (lambda: Treatment("lora", 0.1), "selects no experts"),
        (lambda: Treatment("esft_gate", 1.5), "nearest valid value 1.0"),
        (lambda: comparison(tasks=()), "tasks: nothing to compare"),
        (lambda: comparison(tasks=("law", "task:law")), "two are one"),
        (lambda: comparison(tasks=("laws",)), "did you mean 'law'"),
        (lambda: comparison(treatments=(Treatment("full"),) * 2), "full is there twice"),
        (lambda: comparison(seeds=(-1,)), "-1 is no seed"),
        (lambda: comparison(match="lora"), "no method that selects"),
        (lambda: parts_of(comparison(), [tmp_path], tmp_path), "holds no run"),
        (lambda: parts_of(comparison(), [base, twin], tmp_path), "two bases are called m1"),
        (lambda: load_comparison("bases"), "has no get_comparison"),
        (lambda: load_comparison("finetun"), "did you mean 'finetune'"),
        (lambda: load_comparison("finetune:q"), "known: methods, p, rates, smoke"),
        (lambda: load_grid("finetune"), "python -m experiments.finetune_study --grid=finetune"),
    ]
    for call, message in cases:
        with pytest.raises(ConfigError, match=message.replace("(", r"\(")) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_the_shipped_comparison_has_methods_tasks_and_seeds():
    found = load_comparison("finetune")
    assert len(found.tasks) >= 3 and len(found.seeds) >= 2
    methods = {one.method for one in found.treatments}
    assert {"full", "esft_random", "esft_gate", "esft_token", "lora", "multilora"} <= methods
    assert "finetune" in shipped_names("get_comparison") and "finetune" not in shipped_names()
    curve = load_comparison("finetune:p").treatments
    assert len({one.p for one in curve if one.method == "esft_gate"}) > 3
    rates = load_comparison("finetune:rates").treatments
    for method in ("full", "esft_gate", "lora"):
        tried = [one.overrides["optimizer.lr"] for one in rates if one.method == method]
        assert len(set(tried)) == len(tried) >= 3
    text = ast.get_docstring(ast.parse((REPOSITORY / "configs/grids/finetune.py").read_text()))
    assert "python -m experiments.finetune_study --grid=finetune --base=" in text


# ---- the loop


@pytest.fixture
def study(tmp_path, monkeypatch):
    """`run(*parts)` in a directory with the program `fake`; `run.ran()`: what has run so far."""
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.chdir(tmp_path)
    said: list[str] = []

    def run(*parts, every=60.0):
        return run_parts(parts, Places(tmp_path / "out"), said.append, every)

    def ran():
        path = tmp_path / "ran.txt"
        found = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return found

    (tmp_path / "out").mkdir()
    run.ran, run.said, run.root = ran, said, tmp_path
    return run


def part(root, name, *does, needs=(), **fields):
    product = root / f"{name}.out"
    needs = tuple(root / f"{need}.out" for need in needs)
    words = (name, str(product), *does)
    return Part(name, "kind", "fake", words, product, needs, **fields)


def test_what_is_done_is_left_alone(study):
    parts = [part(study.root, "a"), part(study.root, "b", needs=["a"])]
    assert study(*parts).done == 2 and study.ran() == ["a", "b"]
    assert study(*parts).done == 2 and study.ran() == []
    (study.root / "b.out").unlink()
    study(*parts)
    assert study.ran() == ["b"]


def test_another_command_or_a_newer_need_is_run_again(study):
    parts = [part(study.root, "a"), part(study.root, "b", needs=["a"])]
    study(*parts)
    study.ran()
    study(part(study.root, "a", "else"), parts[1])
    assert study.ran() == ["a", "b"]
    later = time.time() + 5
    os.utime(study.root / "a.out", (later, later))
    study(part(study.root, "a", "else"), parts[1])
    assert study.ran() == ["b"]


def test_a_failure_ends_only_what_needs_it(study):
    parts = [
        part(study.root, "a", "fail"),
        part(study.root, "b", needs=["a"]),
        part(study.root, "c", needs=["b"]),
        part(study.root, "d"),
        part(study.root, "report", needs=["c", "d"], always=True),
    ]
    outcome = study(*parts)
    assert study.ran() == ["a", "d", "report"]
    assert outcome.failed == {"a": "error: no luck"} and outcome.skipped == ("b", "c")
    assert any("failed: error: no luck" in line for line in study.said)
    # Mended, the rest follows, and the report is made anew.
    study(part(study.root, "a"), *parts[1:])
    assert study.ran() == ["a", "b", "c", "report"]


def test_a_program_that_makes_nothing_has_failed(study):
    outcome = study(part(study.root, "a", "nothing"))
    assert "ended without" in outcome.failed["a"]


def test_time_left_is_told_where_every_kind_was_timed(study):
    record = Record(study.root / "parts.json")
    a, b = part(study.root, "a"), part(study.root, "b")
    assert eta([a, b], record) == ""
    record.add(a, 0, 90.0)
    assert eta([b], record) == ", ETA 1 min 30 s"
    other = Part("x", "other", "fake", (), study.root / "x.out")
    assert eta([b, other], record) == ""
    record.add(a, 0, 0.5)  # looked at again: no time of a run
    assert Record(study.root / "parts.json").seconds("kind") == [90.0]


def test_a_signal_ends_the_part_and_the_loop_and_is_resumed(study):
    parts = [part(study.root, "a"), part(study.root, "b", "sleep"), part(study.root, "c")]

    def stop():
        log = study.root / "out" / "logs" / "b.txt"
        for _ in range(200):
            if log.exists() and "sleeping" in log.read_text():
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=stop)
    thread.start()
    outcome = study(*parts, every=0.1)
    thread.join()
    assert outcome.stopped == signal.SIGTERM and study.ran() == ["a", "b"]
    assert any("sleeping" in line for line in study.said)
    assert study(part(study.root, "b"), *parts[2:]).done == 2
    assert study.ran() == ["b", "c"]


def test_a_record_of_another_version_is_refused(study):
    (study.root / "out" / "parts.json").write_text(json.dumps({"format_version": 9}))
    with pytest.raises(ConfigError, match="no record of parts"):
        study(part(study.root, "a"))
