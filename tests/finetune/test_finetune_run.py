"""Runs that fine-tune: what they start from, leave alone and keep, and how they end."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tuned_runs as tuned
from array_hash import hash_of_arrays

from configs.lm import get_config
from moejax.config import ConfigError, build, override, to_plain
from moejax.finetune.base import open_base
from moejax.finetune.methods import ESFT, Full, LoRA, Partial
from moejax.probe import open_run
from moejax.sharding import MeshConfig, mesh
from moejax.train import Experiment, loop, outcome, run, session
from moejax.train.checkpoint import CheckpointReader
from moejax.train.clock import Best, Clock
from moejax.train.programs import compile_programs
from moejax.train.rundir import identity_hash
from moejax.train.shapes import state_layout

HARMFUL = 0.5
CHOSEN = tuned.CHOSEN

pytestmark = pytest.mark.usefixtures("laptop")


@pytest.fixture(scope="module")
def selected(tuned_selected: Path) -> Path:
    return tuned_selected


@pytest.fixture(scope="module")
def harmed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained at a rate that does harm after a while; one checkpoint kept beside the best."""
    root = tmp_path_factory.mktemp("run") / "harmed"
    run(tuned.tuned_experiment(base, Full(), lr=HARMFUL, steps=4), root)
    return root


@pytest.mark.parametrize(
    "arguments, known",
    [("size=nano,moe=top_k", "c1c7c16af847"), ("size=nano,moe=hetero_top_p", "d6f09530ae0f")],
)
def test_configs_of_before_keep_their_identity(arguments: str, known: str) -> None:
    plain = to_plain(build(Experiment, get_config(arguments)))
    assert "finetune" not in plain
    assert identity_hash(plain) == known


def test_a_variant_of_a_config_without_finetune_has_none_either() -> None:
    experiment = build(Experiment, get_config("size=nano,moe=top_k"))
    assert "finetune" not in to_plain(override(experiment, {"seed": 3}))


def test_a_finetuning_survives_its_config_file(base: Path) -> None:
    experiment = tuned.tuned_experiment(base, ESFT(CHOSEN, router=True))
    plain = json.loads(json.dumps(to_plain(experiment)))
    assert build(Experiment, plain) == experiment
    assert plain["finetune"]["method"]["name"] == "esft"


def test_a_base_that_moved_is_the_same_run(base: Path) -> None:
    plain = to_plain(tuned.tuned_experiment(base, Full()))
    moved = plain | {"finetune": plain["finetune"] | {"base": "elsewhere"}}
    other = plain | {"finetune": plain["finetune"] | {"base_hash": "0123456789abcdef"}}
    assert identity_hash(moved) == identity_hash(plain) != identity_hash(other)


def test_the_header_of_a_checkpoint_gives_the_hash_of_its_parameters(base: Path) -> None:
    found = open_base(base)
    assert found.step == 4
    assert found.hash == hash_of_arrays(open_run(base).restore(4).params)


def test_only_the_chosen_experts_change(base: Path, selected: Path) -> None:
    before, after = tuned.restored(base), tuned.restored(selected, 6)
    moe = open_base(base).experiment.model.plan()[tuned.MOE]
    assert moe is not None
    chosen = np.zeros(moe.spec.num_units, bool)
    for expert in CHOSEN[str(tuned.MOE)]:
        start = moe.spec.starts[expert]
        chosen[start : start + moe.spec.units[expert]] = True
    changed = 0
    for name, old in before.items():
        new = after[name]
        if "/experts/" not in name:
            assert new.tobytes() == old.tobytes(), name  # routers, their state and norms too
            continue
        changed += 1
        assert new[:, ~chosen].tobytes() == old[:, ~chosen].tobytes(), name
        assert (new[:, chosen] != old[:, chosen]).mean() > 0.9, name
    assert changed == 3


def test_optimizer_state_exists_for_chosen_experts_only(selected: Path) -> None:
    opened = open_run(selected)
    state = opened.restore_state(6)
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.trainable))
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert moments == 2 * trained
    record = tuned.final(selected)["finetune"]
    assert record["trainable_parameters"] == trained
    assert 8 * trained <= record["optimizer_bytes"] <= 8 * trained + 16


def test_the_best_checkpoint_outlives_newer_ones(harmed: Path) -> None:
    losses = {
        line["step"]: line["eval/loss"] for line in tuned.lines(harmed) if "eval/loss" in line
    }
    assert set(losses) == {0, 2, 4}
    record = tuned.final(harmed)["finetune"]
    best = min(losses, key=lambda step: (losses[step], step))
    assert best < 4, "the rate must do harm for this test to mean something"
    assert record["best_step"] == best
    assert record["best_loss"] == losses[best]
    opened = open_run(harmed)
    assert opened.steps() == [best, 4]
    assert opened.result() == opened.restore().step == best
    assert opened.restore(4).step == 4


def test_the_last_state_is_let_go_before_the_best_is_restored(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last: list[bool] = []
    record, restore = loop.finetune_record, outcome._at

    def recording(experiment, programs, checkpoints, run_dir, state, clock, **rest):  # type: ignore[no-untyped-def]
        def at(*given):  # type: ignore[no-untyped-def]
            last.extend(leaf.is_deleted() for leaf in jax.tree.leaves(state))
            return restore(*given)

        monkeypatch.setattr(outcome, "_at", at)
        return record(experiment, programs, checkpoints, run_dir, state, clock, **rest)

    monkeypatch.setattr(loop, "finetune_record", recording)
    root = tmp_path / "harmed"
    run(tuned.tuned_experiment(base, Full(), lr=HARMFUL, steps=4), root)
    assert tuned.final(root)["finetune"]["best_step"] < 4
    assert last and all(last)


def test_final_says_what_it_took(selected: Path) -> None:
    record = tuned.final(selected)["finetune"]
    assert record["method"] == "esft"
    assert record["task"] == "words"
    assert record["stopped_early"] is False
    assert record["total_parameters"] > 4 * record["trainable_parameters"]
    files = list((selected / "adapter").iterdir())
    assert record["adapter_bytes"] == sum(file.stat().st_size for file in files)
    assert record["step_seconds"] > 0
    assert record["step_bytes"] > 0
    assert record["peak_bytes"] is None, "a CPU does not count"


def test_patience_ends_a_run_early_and_resuming_leaves_it_alone(base: Path, tmp_path: Path) -> None:
    experiment = tuned.tuned_experiment(base, Full(), lr=HARMFUL, patience=1, steps=40)
    result = run(experiment, tmp_path / "run")
    record = result.final["finetune"]
    assert record["stopped_early"] is True
    assert result.final["step"] == record["best_step"] + 2 < 40
    # It dies between its last checkpoint and final.json: the next attempt ends it the same way.
    (tmp_path / "run" / "final.json").unlink()
    again = run(experiment, tmp_path / "run")
    assert not again.already_done
    assert again.final["step"] == result.final["step"]
    assert again.final["finetune"] | {"step_seconds": 0} == record | {"step_seconds": 0}
    assert run(experiment, tmp_path / "run").already_done


@pytest.mark.parametrize(
    "at", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)]
)
def test_a_killed_finetuning_resumes_bit_for_bit(
    base: Path, selected: Path, tmp_path: Path, at: int
) -> None:
    experiment = tuned.tuned_experiment(base, ESFT(CHOSEN), lr=0.1)
    root = tmp_path / "run"
    with pytest.raises(tuned.Stopped):
        run(experiment, root, progress=tuned.StopAt(at))
    run(experiment, root)
    assert tuned.lines(root) == tuned.lines(selected)
    for step in open_run(selected).steps():
        ours, theirs = tuned.restored(root, step), tuned.restored(selected, step)
        assert {n: x.tobytes() for n, x in ours.items()} == {
            n: x.tobytes() for n, x in theirs.items()
        }
    names = ("adapter.json", "adapter.safetensors")
    ours_bytes, theirs_bytes = (
        [(one / "adapter" / name).read_bytes() for name in names[1:]] for one in (root, selected)
    )
    assert ours_bytes == theirs_bytes


@pytest.mark.slow
def test_a_finetuned_run_is_a_base_itself(base: Path, selected: Path, tmp_path: Path) -> None:
    found = open_base(selected)
    whole = open_run(selected).restore()
    assert found.step == whole.step
    assert found.hash == open_run(selected).params_hash(whole.step) != open_base(base).hash
    experiment = tuned.tuned_experiment(selected, Partial(top_layers=1), steps=2)
    run(experiment, tmp_path / "second")
    first, second = tuned.restored(selected), tuned.restored(tmp_path / "second", 2)
    changed = {name for name in first if first[name].tobytes() != second[name].tobytes()}
    assert changed
    assert not any(name.startswith("params/segments/0/") for name in changed), "layer 0 is below"


@pytest.mark.slow
def test_a_base_tuned_by_lora_is_known_on_every_mesh(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its whole parameters are products, and those of a mesh differ in their last bits."""
    run(tuned.tuned_experiment(base, LoRA(rank=2), lr=0.01, steps=2), tmp_path / "lora")
    experiment = tuned.tuned_experiment(tmp_path / "lora", Partial(top_layers=1), steps=2)
    run(experiment, tmp_path / "one")
    monkeypatch.setattr(mesh, "mesh_devices", jax.devices)
    spread = open_run(tmp_path / "lora", devices=8)
    assert spread.params_hash(2) == open_base(tmp_path / "lora").hash
    wide = dataclasses.replace(experiment, mesh=MeshConfig(fsdp=4, tensor=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "compile_programs", compile_programs)
        run(wide, tmp_path / "eight")
    one, eight = (tuned.restored(tmp_path / name, 2) for name in ("one", "eight"))
    for name, leaf in one.items():
        np.testing.assert_allclose(eight[name], leaf, rtol=1e-4, atol=1e-5, err_msg=name)


def test_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    experiment = tuned.tuned_experiment(base, Full())
    assert experiment.finetune is not None
    other = dataclasses.replace(experiment.finetune, base_hash="0123456789abcdef")
    with pytest.raises(ConfigError, match="is not the base that this run was made for"):
        run(dataclasses.replace(experiment, finetune=other), tmp_path / "hash")
    gone = dataclasses.replace(experiment.finetune, base=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="holds no run"):
        run(dataclasses.replace(experiment, finetune=gone), tmp_path / "gone")
    wider = dataclasses.replace(experiment.model, norm_eps=1e-3)
    with pytest.raises(ConfigError, match="is not that of the base"):
        run(dataclasses.replace(experiment, model=wider), tmp_path / "model")


@pytest.mark.slow
def test_a_lost_best_checkpoint_is_said_and_replaced(base: Path, tmp_path: Path) -> None:
    experiment = tuned.tuned_experiment(base, Full(), lr=HARMFUL)
    root = tmp_path / "run"
    with pytest.raises(tuned.Stopped):
        run(experiment, root, progress=tuned.StopAt(5))
    opened = open_run(root)
    reader = CheckpointReader(
        root / "checkpoints",
        state_layout(opened.experiment, opened.model, opened.tuning, None),
    )
    newest = reader.steps()[-1]
    _, clock = reader.restore(newest)
    assert clock.best is not None
    assert clock.best.step < newest, "the rate must do harm for this test to mean something"
    shutil.rmtree(root / "checkpoints" / str(clock.best.step))
    result = run(experiment, root)
    assert "is gone" in (root / "log.txt").read_text()
    assert result.final["finetune"]["best_step"] in open_run(root).steps()


def test_clocks_of_ordinary_runs_are_stored_as_before() -> None:
    assert "best" not in Clock(step=3).to_json()
    best = Clock(step=6, best=Best(2, 1.5, since=2))
    assert Clock.from_json(json.loads(json.dumps(best.to_json()))) == best
    assert Best(2, 1.5).after(4, 1.5) == Best(2, 1.5, since=1), "of equals the earlier"
    assert Best(2, 1.5, since=3).after(8, 1.4) == Best(8, 1.4)
