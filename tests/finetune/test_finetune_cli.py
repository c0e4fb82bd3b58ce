"""Recipes: what becomes of a base and a config file; and the command as users call it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tuned_runs as tuned

from configs.finetune import RATES, get_config
from moejax.config import ConfigError, build
from moejax.finetune.base import Base, open_base
from moejax.finetune.counts import trainable_parameters
from moejax.finetune.formats import read_selection, write_selection
from moejax.finetune.methods import ESFT
from moejax.finetune.recipe import KINDS, SIZED, Recipe, experiment_of
from moejax.finetune.scores import Origin
from moejax.finetune.selecting import selection_for
from moejax.finetune.selection import Selection
from moejax.interop.safetensors import SafetensorsFile

REPOSITORY = Path(__file__).resolve().parents[2]
QUIET: Any = lambda text: None  # noqa: E731


@pytest.fixture(scope="module", autouse=True)
def laptop() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        tuned.on_a_laptop(patch)
        yield


@pytest.fixture(scope="module")
def base(tuned_base: Path) -> Base:
    return open_base(tuned_base)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sums of one digit, short enough for a window of sixteen bytes."""
    path = tmp_path_factory.mktemp("sums") / "sums.jsonl"
    rows = [{"prompt": f"{a}+{b}", "answer": str(a + b)} for a in range(10) for b in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"task:files:{path}"


def recipe(argument: str, **changes: Any) -> Recipe:
    made: Recipe = build(Recipe, get_config(argument))
    return dataclasses.replace(made, **changes)


def chosen(base: Base, *experts: int, layer: int = tuned.MOE, **origin: Any) -> Selection:
    return Selection({layer: experts}, origin=Origin(base_hash=base.hash, **origin))


@pytest.mark.parametrize("method", KINDS)
def test_every_method_becomes_a_run(method: str, base: Base) -> None:
    made = recipe(f"method={method},task=none,steps=7")
    selection = chosen(base, 1, 4) if made.selects else None
    experiment = experiment_of(made, base, selection)
    finetune = experiment.finetune
    assert finetune is not None
    assert (finetune.base_hash, finetune.base_step) == (base.hash, 4)
    assert finetune.label == method
    assert experiment.model == base.experiment.model
    assert experiment.data == base.experiment.data
    assert experiment.total_steps == 7
    assert experiment.optimizer.lr == RATES[method]


@pytest.mark.parametrize("method", SIZED)
def test_sizes_are_matched_to_a_selection(method: str, base: Base, tmp_path: Path) -> None:
    file = tmp_path / "expert_config.json"
    write_selection(file, chosen(base, *range(7)))
    model = base.experiment.model
    wanted = trainable_parameters(ESFT({str(tuned.MOE): tuple(range(7))}), model)
    finetune = experiment_of(recipe(f"method={method},task=none,match={file}"), base).finetune
    assert finetune is not None
    found = trainable_parameters(finetune.method, model)
    if method == "partial":
        others = [
            trainable_parameters(dataclasses.replace(finetune.method, top_layers=n), model)
            for n in (1, 2)
        ]
    else:
        assert finetune.method.alpha == 2 * finetune.method.rank, "ESFT's scaling of 2"
        others = [
            trainable_parameters(dataclasses.replace(finetune.method, rank=rank), model)
            for rank in range(1, 6)
        ]
    assert abs(found - wanted) == min(abs(other - wanted) for other in others)


@pytest.mark.parametrize(
    "argument, changes, said",
    [
        ("method=full,match=runs/x", {}, "trains what it is told to"),
        ("method=lora,p=0.1", {}, "belongs to ESFT"),
        ("method=full", {"router": True}, "belongs to ESFT"),
        ("method=esft_gate,general=most", {}, "a share of the rows or 'none'"),
        ("method=esft_gate,general=1.5", {}, "must be in"),
        ("method=esft", {}, "must be one of"),
        ("method=esft_gate,p=1.5", {}, "must be in"),
        ("method=esft_gate,rank=4", {}, "rank=4: belongs to lora, multilora"),
        ("method=full", {"alpha": 4.0}, "alpha=4.0: belongs to lora, multilora"),
        ("method=lora,n=2", {}, "modules=2: belongs to multilora"),
        ("method=partial", {"targets": ("attention",)}, "targets=.*belongs to lora"),
        ("method=esft_token", {"per_expert": False}, "per_expert=False: belongs to lora"),
        ("method=lora", {"top_layers": 2}, "top_layers=2: belongs to partial"),
        ("method=lora", {"samples": 2}, "samples=2: belongs to esft_gate"),
        ("method=full", {"length": 64}, "length=64: belongs to esft_gate"),
        ("method=lora,rank=4,match=runs/x", {}, "config.match chooses it"),
        ("method=partial,match=runs/x", {"top_layers": 2}, "config.match chooses it"),
        ("method=full,task=none,general=0.25", {}, "trains on the base's text alone"),
    ],
)
def test_impossible_recipes_are_refused(argument: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        recipe(argument, **changes).validate("config")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "experts, layer, origin, said",
    [
        ((7,), tuned.MOE, {}, "expert 7 is out of range"),
        ((0,), 0, {}, "layer 0 of the model is dense"),
        ((0,), 9, {}, "the model has 2 layers"),
        ((0,), tuned.MOE, {"experts": {1: 64}}, "was chosen for another model"),
        ((), tuned.MOE, {}, "no expert is chosen"),
    ],
)
def test_selections_that_do_not_fit_are_refused(
    base: Base, tmp_path: Path, experts: Any, layer: int, origin: dict[str, Any], said: str
) -> None:
    file = tmp_path / "expert_config.json"
    write_selection(file, chosen(base, *experts, layer=layer, **origin))
    with pytest.raises(ConfigError, match=said) as refused:
        selection_for(recipe("method=esft_gate,task=none"), base, tmp_path, str(file), QUIET)
    assert "\n" not in str(refused.value)


def test_a_selection_of_another_base_is_refused(base: Base, tmp_path: Path) -> None:
    file = tmp_path / "expert_config.json"
    other = dataclasses.replace(chosen(base, 1), origin=Origin(base_hash="0123456789abcdef"))
    write_selection(file, other)
    with pytest.raises(ConfigError, match="was chosen for another model"):
        selection_for(recipe("method=esft_gate,task=none"), base, tmp_path, str(file), QUIET)
    with pytest.raises(ConfigError, match="is for ESFT"):
        experiment_of(recipe("method=lora,task=none"), base, chosen(base, 1))
    with pytest.raises(ConfigError, match="--selection: is required with task=none"):
        selection_for(recipe("method=esft_gate,task=none"), base, tmp_path, "", QUIET)


def test_sizes_are_not_matched_to_a_selection_of_another_base(base: Base, tmp_path: Path) -> None:
    file = tmp_path / "expert_config.json"
    write_selection(file, Selection({tuned.MOE: (1,)}, origin=Origin(base_hash="0" * 16)))
    with pytest.raises(ConfigError, match=r"config\.match: was chosen for another model"):
        experiment_of(recipe(f"method=lora,task=none,match={file}"), base)


def test_a_size_that_cannot_be_matched_is_said(base: Base, tmp_path: Path) -> None:
    file = tmp_path / "expert_config.json"
    write_selection(file, chosen(base, 0))
    made = recipe(f"method=multilora,task=none,match={file}")
    said: list[str] = []
    method = experiment_of(made, base, say=said.append).finetune.method  # type: ignore[union-attr]
    model = base.experiment.model
    wanted = trainable_parameters(ESFT({str(tuned.MOE): (0,)}), model)
    (line,) = said
    assert f"trains {trainable_parameters(method, model)} parameters, {wanted} were" in line
    assert "\n" not in line
    write_selection(file, chosen(base, *range(7)))
    experiment_of(dataclasses.replace(made, targets=("attention",)), base, say=said.append)
    assert said == [line], "a size within 10 % needs no word"


def test_a_given_selection_needs_no_sampling(base: Base, tmp_path: Path) -> None:
    file = tmp_path / "expert_config.json"
    write_selection(file, chosen(base, 1))
    made = recipe("method=esft_gate,task=none,quick")
    assert selection_for(made, base, tmp_path, str(file), QUIET).experts == {tuned.MOE: (1,)}
    for name in ("samples", "length"):
        other = dataclasses.replace(made, **{name: 7})
        with pytest.raises(ConfigError, match=f"config.{name}=7: with --selection nothing is"):
            selection_for(other, base, tmp_path, str(file), QUIET)


def test_a_selection_made_otherwise_is_not_reused(base: Base, task: str, tmp_path: Path) -> None:
    first = recipe("method=esft_token,p=0.5", task=task, samples=2, length=64)

    def reused(made: Recipe) -> bool:
        said: list[str] = []
        selection_for(made, base, tmp_path, "", said.append)
        return "selected before" in said[-1]

    assert not reused(first) and reused(first)
    assert not reused(dataclasses.replace(first, p=0.0)), "the published p is another one"
    assert not reused(dataclasses.replace(first, p=0.0, samples=3))
    assert not reused(dataclasses.replace(first, p=0.0, samples=3, length=8))
    short = dataclasses.replace(first, samples=10_000)
    assert not reused(short)
    assert reused(short), "the text has no more"


def test_a_selection_for_a_text_that_changed_is_not_reused(base: Base, tmp_path: Path) -> None:
    """As many tokens, but others."""
    said: list[str] = []
    file = tmp_path / "sums.jsonl"
    made = recipe("method=esft_token,p=0.5", task=f"task:files:{file}", samples=2, length=64)
    for sign in "+-":
        rows = [{"prompt": f"{a}{sign}{b}", "answer": str(a)} for a in range(10) for b in range(10)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        selection_for(made, base, tmp_path, "", said.append)
    assert not any("selected before" in text for text in said)


def test_a_run_of_another_base_is_no_size_to_match(base: Base, tuned_selected: Path) -> None:
    other = dataclasses.replace(base, hash="0123456789abcdef")
    with pytest.raises(ConfigError, match=r"config\.match=.*: was trained from another base"):
        experiment_of(recipe(f"method=lora,task=none,match={tuned_selected}"), other)


def test_a_base_is_scored_on_the_spot_once(base: Base, task: str, tmp_path: Path) -> None:
    made = recipe("method=esft_token,p=0.5", task=task, samples=2, length=64)
    said: list[str] = []
    found = selection_for(made, base, tmp_path, "", said.append)
    again = selection_for(made, base, tmp_path, "", said.append)
    assert again == found
    assert [("selected before" in text) for text in said[-2:]] == [False, True]
    (place,) = (tmp_path / "esft").iterdir()
    assert {file.name for file in place.iterdir()} == {"summary.json", "expert_config.json"}
    assert read_selection(place / "expert_config.json").experts == found.experts
    random = selection_for(
        dataclasses.replace(made, method="esft_random", p=0.5), base, tmp_path, "", said.append
    )
    assert random.seed == made.seed
    assert experiment_of(made, base, found).data.general is not None


def command(*flags: str, devices: int = 1) -> subprocess.Popen[str]:
    kept = [f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f]
    kept.append(f"--xla_force_host_platform_device_count={devices}")
    environment = os.environ | {"XLA_FLAGS": " ".join(kept)}
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.finetune", *flags],
        cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "flags, said",
    [
        pytest.param(
            ["--config=configs/finetune.py"],
            "error: --init: the run directory of the base",
            marks=pytest.mark.slow,
        ),
        (["--config=configs/finetune.py", "--init={empty}"], "holds no run: has no config.json"),
        pytest.param(["--workdir={base}"], "is no fine-tuning", marks=pytest.mark.slow),
    ],
)
def test_wrong_use_is_one_line(flags: list[str], said: str, base: Base, tmp_path: Path) -> None:
    places = {"empty": tmp_path, "base": base.run.root}
    child = command(*(flag.format(**places) for flag in flags))
    output, _ = child.communicate(timeout=240)
    assert child.returncode == 2, output
    assert said in output
    assert len(output.strip().splitlines()) == 1


def given(base: Base, task: str, root: Path, method: str = "esft_gate") -> list[str]:
    """Flags of a run on eight devices in any number of processes."""
    return [
        f"--config=configs/finetune.py:method={method},quick",
        f"--config.task={task}",
        "--config.seq_len=48",
        f"--init={base.run.root}",
        f"--workdir={root}",
        "--config.train.steps=12",
        "--config.optimizer.lr=0.05",
        "--config.mesh.fsdp=2",
        "--config.mesh.expert=4",
        "--config.log.tensorboard=False",
    ]


def together(flags: list[str], processes: int) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        place = f"--coordinator=localhost:{probe.getsockname()[1]}"
    if processes == 1:
        return [command(*flags, devices=8)]
    return [
        command(*flags, place, f"--processes={processes}", f"--process={i}", devices=8 // processes)
        for i in range(processes)
    ]


def ended(children: list[subprocess.Popen[str]], code: int = 0) -> None:
    try:
        outputs = [child.communicate(timeout=600)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [code] * len(children), outputs


def trained(root: Path) -> dict[str, np.ndarray]:
    file = SafetensorsFile(root / "adapter" / "adapter.safetensors")
    return {name: file.read(name) for name in file.tensors}


@pytest.mark.slow
def test_processes_and_meshes_fine_tune_the_same_model(
    base: Base, task: str, tmp_path: Path
) -> None:
    """One device; eight; two processes of four each, stopped and resumed."""
    one, eight, two = (tmp_path / name for name in ("one", "eight", "two"))
    alone = [flag for flag in given(base, task, one) if "config.mesh" not in flag]
    ended([command(*alone)])
    ended(together(given(base, task, eight), 1))
    children = together(given(base, task, two), 2)
    metrics = two / "metrics.jsonl"
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline:
        if metrics.exists() and '"step": 3' in metrics.read_text():
            break
        time.sleep(0.05)
    children[1].send_signal(signal.SIGTERM)
    ended(children, 128 + signal.SIGTERM)
    assert not (two / "final.json").exists()
    ended(together([f"--workdir={two}"], 2))

    wanted, record = trained(one), tuned.final(one)["finetune"]
    unchanged = tuned.restored(base.run.root)
    for root in (eight, two):
        found = trained(root)
        assert found.keys() == wanted.keys()
        for name, leaf in wanted.items():
            np.testing.assert_allclose(found[name], leaf, atol=2e-4, err_msg=f"{root} {name}")
        assert tuned.final(root)["finetune"]["best_step"] == record["best_step"]
        assert tuned.final(root)["finetune"]["trainable_parameters"] == sum(
            leaf.size for leaf in found.values()
        )
        whole = tuned.restored(root)
        for name, leaf in unchanged.items():
            if "/experts/" not in name:
                assert whole[name].tobytes() == leaf.tobytes(), name
    metrics_of = [[row for row in tuned.lines(root) if "eval/loss" in row] for root in (one, two)]
    assert [row["step"] for row in metrics_of[0]] == [row["step"] for row in metrics_of[1]]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora", "multilora", "partial", "esft_random"])
def test_every_method_trains_on_eight_devices(
    method: str, base: Base, task: str, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    flags = [f for f in given(base, task, root, method) if "train.steps" not in f]
    ended(together(flags, 1))
    again = together(flags, 1)
    output, _ = again[0].communicate(timeout=600)
    assert output.startswith("was done already") or "was done already" in output
    record = tuned.final(root)["finetune"]
    assert record["method"] == method
    assert record["best_step"] in (0, 2, 4, 6)


@pytest.mark.slow
def test_two_processes_let_go_of_the_last_state_and_keep_the_best(
    base: Base, task: str, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    harmful = ["--config.optimizer.lr=5.0", "--config.train.steps=6"]
    flags = [
        flag for flag in given(base, task, root, "full")
        if not flag.startswith(("--config.optimizer.lr", "--config.train.steps"))
    ]  # fmt: skip
    ended(together([*flags, *harmful], 2))
    record = tuned.final(root)["finetune"]
    assert record["best_step"] < 6, "the rate must do harm for this test to mean something"
    best = tuned.restored(root, record["best_step"])
    for name, leaf in trained(root).items():
        place = name if name.startswith("router_state/") else f"params/{name}"
        assert leaf.tobytes() == best[place].tobytes(), name
