"""Fine-tunings as a study: pairing with the base, seeds, both intervals, verdicts, and notes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from run_factory import edit_json
from tuned_factory import (
    DOCUMENTS,
    HARD_D,
    TOKENS_D,
    listed,
    make_base,
    make_tuned,
    write_score,
)

from moejax.analysis.evidence import Evidence
from moejax.analysis.finetuning.claims import caveats, claims, findings, overall
from moejax.analysis.finetuning.paired import Losses, average, mean_over
from moejax.analysis.finetuning.study import GENERAL, TASK
from moejax.analysis.intervals import t_quantile
from moejax.analysis.runs import find_runs, load_runs
from moejax.analysis.scaling.run_points import from_runs
from moejax.analysis.verdicts import CANNOT_TELL, DOES_NOT, HOLDS
from moejax.analysis.view import views
from moejax.config import ConfigError

WAVE_D = 0.05 * np.sin(np.arange(DOCUMENTS))
TASKS = ("law", "code", "mathematics")


def evidence(root):
    return Evidence(views(load_runs(find_runs([root]))[0]), [root])


def study_of(root):
    return evidence(root).finetuning


def verdicts(root):
    return {one.claim: one.verdict for one in claims(study_of(root))}


# ---- intervals


def test_the_mean_over_documents_is_the_ratio_estimator():
    sum_D, count_D = np.array([3.0, 8.0, 2.0]), np.array([1.0, 4.0, 2.0])
    found = mean_over(Losses(("a", "b", "c"), sum_D, count_D))
    mean = 13 / 7
    error = math.sqrt(3 / 2 * sum((x - mean * n) ** 2 for x, n in zip(sum_D, count_D, strict=True)))
    assert found.mean == pytest.approx(mean)
    assert found.high - found.mean == pytest.approx(t_quantile(2) * error / 7)


def test_documents_are_paired_by_name_and_never_by_place():
    one = Losses(("a", "b"), np.array([3.0, 8.0]), np.array([1.0, 4.0]))
    turned = Losses(("b", "a"), np.array([7.0, 1.0]), np.array([4.0, 1.0]))
    gap = one.minus(turned)
    assert gap is not None and gap.sum_D.tolist() == [2.0, 1.0]
    assert one.minus(Losses(("a", "c"), one.sum_D, one.count_D)) is None
    assert one.minus(Losses(("a", "b"), one.sum_D, one.count_D + 1)) is None
    assert average([one, turned]) is None


def test_a_document_more_is_no_pair():
    one = Losses(("a",), np.array([3.0]), np.array([1.0]))
    two = Losses(("a", "b"), np.array([3.0, 1.0]), np.array([1.0, 1.0]))
    assert one.minus(two) is None and two.minus(one) is None


# ---- pairing


def test_changes_are_those_of_the_same_documents(tmp_path):
    base = make_base(tmp_path)
    make_tuned(tmp_path, base, change=-0.5 + WAVE_D, forgotten=0.1)
    make_tuned(tmp_path, base, seed=1, change=-0.3 + WAVE_D, forgotten=0.2)
    (cell,) = study_of(tmp_path).cells
    assert (cell.task, cell.method, cell.name, len(cell.runs)) == (
        "law", "esft_gate", "esft_gate", 2,
    )  # fmt: skip
    effect = cell.effect(TASK)
    weighted = float((WAVE_D * TOKENS_D).sum() / TOKENS_D.sum())
    assert effect.mean == pytest.approx(-0.4 + weighted)
    # The spread between documents is 1/3 nats; that of the differences is the wave's alone.
    assert 0 < effect.documents.high - effect.documents.mean < 0.03
    assert effect.seeds.n == 2
    assert effect.seeds.half_width == pytest.approx(t_quantile(1) * 0.1)
    assert cell.effect(GENERAL).mean == pytest.approx(0.15)


@pytest.mark.parametrize(
    "fields, what",
    [
        ({"task_hash": "other"}, "no score of the same examples"),
        ({"split": "validation"}, "no score of the same examples"),
        ({"general_text_hash": "other"}, "other general text"),
        ({"answer_documents": listed(HARD_D[:-1], TOKENS_D[:-1])}, "other task text"),
    ],
)
def test_what_is_of_another_text_is_not_paired_but_told(tmp_path, fields, what):
    base = make_base(tmp_path)
    run = make_tuned(tmp_path, base, **fields)
    study = study_of(tmp_path)
    (cell,) = study.cells
    known = [one for one in (TASK, GENERAL) if math.isfinite(cell.effect(one).mean)]
    assert known == {"other general text": [TASK], "other task text": [GENERAL]}.get(what, [])
    (note,) = study.notes
    assert note.run == run.name and what in note.what
    assert what in " ".join(caveats(study))


def test_the_base_is_the_one_with_the_hash_at_the_step(tmp_path):
    base = make_base(tmp_path)
    edit_json(base / "tasks" / "law.json", step=50)
    make_tuned(tmp_path, base)
    study = study_of(tmp_path)
    assert math.isnan(study.cells[0].effect(TASK).mean)
    assert "at step 100" in study.notes[0].what
    edit_json(base / "tasks" / "law.json", step=100, base_hash="another model")
    assert math.isnan(study_of(tmp_path).cells[0].effect(TASK).mean)
    edit_json(base / "tasks" / "law.json", base_hash="hash-of-base")
    assert not study_of(tmp_path).notes


def test_a_base_may_be_tuned_itself(tmp_path):
    first = make_base(tmp_path, tasks=("law", "code"))
    base = make_tuned(tmp_path, first, "full", "code", name="second")
    edit_json(base / "tasks" / "code.json", params_hash="hash-of-second")
    ofs = {"base_hash": "hash-of-first", "params_hash": "hash-of-second"}
    write_score(base, "law", **ofs)
    make_tuned(tmp_path, base, name="third", change=-0.25)
    cell = next(one for one in study_of(tmp_path).cells if one.task == "law")
    assert cell.base.name == "second" and cell.effect(TASK).mean == pytest.approx(-0.25)
    # Its own base's hash says nothing about what was scored.
    write_score(base, "law", base_hash="hash-of-second", params_hash="trained anew")
    cell = next(one for one in study_of(tmp_path).cells if one.task == "law")
    assert math.isnan(cell.effect(TASK).mean)


def test_a_score_of_another_step_than_the_best_is_left_out_by_name(tmp_path):
    base = make_base(tmp_path)
    make_tuned(tmp_path, base, step=BEST_LATER, score=False)
    run = make_tuned(tmp_path, base, seed=1)
    edit_json(run / "tasks" / "law.json", step=BEST_LATER)
    study = study_of(tmp_path)
    assert not study.cells
    first, second = study.notes
    assert "no score on law" in first.what and first.severity == "excluded"
    assert "scored at step 77" in second.what


BEST_LATER = 77


def test_repeated_runs_are_told_and_the_last_counts(tmp_path):
    base = make_base(tmp_path)
    make_tuned(tmp_path, base, name="first", change=-0.5)
    make_tuned(tmp_path, base, name="second", change=-0.7)
    study = study_of(tmp_path)
    (cell,) = study.cells
    assert cell.effect(TASK).mean == pytest.approx(-0.7)
    (note,) = study.notes
    assert note.run == "first" and "second has the same configuration" in note.what


def test_random_draws_are_seeds_of_one_method_and_other_selections_are_not(tmp_path):
    base = make_base(tmp_path)
    for seed, chosen in ((0, [1, 2]), (1, [0, 3])):
        for method in ("esft_random", "esft_gate"):
            kind = {"name": "esft", "experts": {"0": chosen}}
            make_tuned(tmp_path, base, method, seed=seed, kind=kind)
    cells = study_of(tmp_path).cells
    sizes = sorted((cell.method, len(cell.runs)) for cell in cells)
    assert sizes == [("esft_gate", 1), ("esft_gate", 1), ("esft_random", 2)]
    random = next(cell for cell in cells if cell.method == "esft_random")
    assert random.runs[0].tuned.chosen == 2 and random.runs[0].tuned.experts == 8
    gates = {cell.name for cell in cells if cell.method == "esft_gate"}
    assert len(gates) == 2 and all(name.startswith("esft_gate (") for name in gates)


def test_an_unfinished_fine_tuning_is_told(tmp_path):
    base = make_base(tmp_path)
    run = make_tuned(tmp_path, base)
    (run / "final.json").unlink()
    study = study_of(tmp_path)
    assert not study.cells and study.notes[0].what == "is fine-tuned but has no result yet"


@pytest.mark.parametrize(
    "record, what",
    [
        ("{", "cut short"),
        ('{"format_version": 9}', "format_version"),
        ('{"format_version": 1, "step": 1}', "whole number"),
    ],
)
def test_an_odd_score_is_a_note_of_its_run(tmp_path, record, what):
    base = make_base(tmp_path)
    run = make_tuned(tmp_path, base)
    (run / "tasks" / "law.json").write_text(record)
    found = evidence(tmp_path)
    assert not found.finetuning.cells
    notes = [n for v in found.runs for n in v.run.notes if n.where == "tasks/law.json"]
    assert len(notes) == 1 and what in notes[0].what


def test_a_document_twice_is_refused(tmp_path):
    base = make_base(tmp_path)
    twice = listed(HARD_D)
    twice[1]["id"] = twice[0]["id"]
    write_score(base, "law", answer_documents=twice)
    make_tuned(tmp_path, base)
    found = evidence(tmp_path)
    assert math.isnan(found.finetuning.cells[0].effect(TASK).mean)
    assert any("twice" in n.what for v in found.runs for n in v.run.notes)


# ---- claims


def compare(tmp_path, gaps, tasks=TASKS, seeds=(0, 1), noise=0.002, other="full"):
    """esft_gate less `other`: the gap on the task, and what that one forgets more."""
    base = make_base(tmp_path, tasks=tasks)
    for task, gap in zip(tasks, gaps, strict=True):
        for seed in seeds:
            shake = noise * (seed - 0.5)
            make_tuned(tmp_path, base, "esft_gate", task, seed, -0.5 + gap + shake + WAVE_D, 0.05)
            make_tuned(
                tmp_path,
                base,
                other,
                task,
                seed,
                -0.5 - shake + 0.5 * WAVE_D,
                0.3,
                trainable=20_000,
            )


LOWER = "esft_gate has a lower task loss than full with 0.05 times its trainable parameters."


@pytest.mark.parametrize(
    "gaps, verdict",
    [
        ((-0.10, -0.12, -0.11), HOLDS),
        ((0.10, 0.12, 0.11), DOES_NOT),
        ((-0.10, 0.12, 0.01), CANNOT_TELL),
        ((-0.001, -0.002, 0.001), CANNOT_TELL),
        ((-0.05, -0.5, -2.0), HOLDS),  # no interval over tasks, but each by itself
    ],
)
def test_a_claim_is_judged_over_tasks(tmp_path, gaps, verdict):
    compare(tmp_path, gaps)
    assert verdicts(tmp_path)[LOWER] == verdict


def test_one_seed_tells_nothing_by_task_and_one_task_nothing_over_tasks(tmp_path):
    compare(tmp_path, (-0.1,), ("law",), seeds=(0,))
    study = study_of(tmp_path)
    (claim,) = [one for one in claims(study) if one.claim == LOWER]
    assert claim.verdict == CANNOT_TELL and "nothing tells the noise of seeds" in claim.because
    told = " ".join(caveats(study))
    assert "one seed only" in told and "no interval over tasks" in told


def test_noise_of_seeds_larger_than_the_gap_cannot_tell(tmp_path):
    compare(tmp_path, (-0.01, -0.01), TASKS[:2], noise=0.5)
    assert verdicts(tmp_path)[LOWER] == CANNOT_TELL


def test_another_methods_noise_blurs_nothing(tmp_path):
    """What is drawn at random differs by half a nat between seeds; the two compared by 0.002."""
    compare(tmp_path, (-0.10, -0.12), TASKS[:2])
    for task in TASKS[:2]:
        for seed, change in ((0, -0.2), (1, -0.7)):
            make_tuned(tmp_path, tmp_path / "base", "esft_random", task, seed, change)
    found = verdicts(tmp_path)
    assert found[LOWER] == HOLDS
    (other,) = [
        one for one in found if one.startswith("esft_gate has a lower task loss than esft_r")
    ]
    assert found[other] == CANNOT_TELL


def test_forgetting_is_judged_on_the_general_text(tmp_path):
    compare(tmp_path, (0.0, 0.0, 0.0))
    found = verdicts(tmp_path)
    (claim,) = [one for one in found if one.startswith("esft_gate forgets less than full")]
    # Forgotten is exactly 0.25 less on every document: the interval has no width.
    assert found[claim] == HOLDS


def test_equal_parameters_are_said_to_be(tmp_path):
    base = make_base(tmp_path)
    make_tuned(tmp_path, base, "esft_gate", trainable=1000)
    make_tuned(tmp_path, base, "lora", trainable=1050)
    assert any("than lora at equal trainable parameters" in claim for claim in verdicts(tmp_path))


def test_the_published_p_stands_for_a_method_with_several(tmp_path):
    base = make_base(tmp_path)
    for p, change in ((0.05, -0.1), (0.1, -0.2), (0.3, -0.3)):
        kind = {"name": "esft", "experts": {"0": list(range(round(10 * p) + 1))}}
        make_tuned(tmp_path, base, name=f"p{p}", change=change, kind=kind, p=p)
    make_tuned(tmp_path, base, "full", change=-0.4)
    study = study_of(tmp_path)
    found = overall(study, study.bases[0], "esft_gate", "full", TASK)
    assert found is not None and found.mean.mean == pytest.approx(0.2)
    assert "esft_gate (p=0.3)" in {cell.name for cell in study.cells}


def make_rates(tmp_path, base, task, losses, test, method="lora"):
    """One method with several learning rates: {rate: validation loss by seed}, {rate: change}."""
    for rate, by_seed in losses.items():
        for seed, loss in enumerate(by_seed):
            own = f"{base.name}-{method}-{rate}-{task}-seed{seed}"
            final = {"best_loss": loss}
            run = make_tuned(
                tmp_path, base, method, task, seed, test[rate], name=own, final=final
            )  # fmt: skip
            config = json.loads((run / "config.json").read_text())["config"]
            edit_json(run / "config.json", config=config | {"optimizer": {"lr": rate}})


def test_of_several_rates_validation_chooses_and_never_test(tmp_path):
    base = make_base(tmp_path)
    test = {0.001: -0.9, 0.003: -0.3, 0.01: -0.6}
    # The first listed is the best on test; the last has the best single seed of validation.
    losses = {0.001: (1.7, 1.7), 0.003: (1.5, 1.5), 0.01: (1.2, None)}
    make_rates(tmp_path, base, "law", losses, test)
    for seed in (0, 1):
        make_tuned(tmp_path, base, "esft_gate", seed=seed, change=-0.5)
    study = study_of(tmp_path)
    found = overall(study, study.bases[0], "esft_gate", "lora", TASK)
    assert found is not None and found.mean.mean == pytest.approx(-0.2)
    (claim,) = [one for one in verdicts(tmp_path) if "has a lower task loss" in one]
    assert claim.startswith("esft_gate has a lower task loss than lora (lr=0.003) at equal")


def test_rates_that_validation_chose_are_named_by_task(tmp_path):
    base = make_base(tmp_path, tasks=("law", "code"))
    test = {0.001: -0.4, 0.01: -0.4}
    make_rates(tmp_path, base, "law", {0.001: (1.7,), 0.01: (1.8,)}, test)
    make_rates(tmp_path, base, "code", {0.001: (1.7,), 0.01: (1.6,)}, test)
    for task in ("law", "code"):
        make_tuned(tmp_path, base, "esft_gate", task)
    (claim,) = [one for one in verdicts(tmp_path) if "has a lower task loss" in one]
    parts = claim.partition("than lora (")[2].partition(")")[0].split("; ")
    assert sorted(parts) == ["code lr=0.01", "law lr=0.001"]


def test_granularity_compares_bases_of_finer_experts(tmp_path):
    for active, gap in ((2.0, 0.30), (8.0, 0.10)):
        base = make_base(tmp_path, f"m{active:g}", active, TASKS)
        for i, task in enumerate(TASKS):
            at = {"active": active, "task": task}
            make_tuned(tmp_path, base, "esft_gate", change=-0.5 + gap + 0.01 * i, **at)
            make_tuned(tmp_path, base, "full", change=-0.5 + 0.01 * i**2, **at)
    (claim,) = [one for one in claims(study_of(tmp_path)) if one.claim.startswith("With finer")]
    assert "8 instead of 2" in claim.claim and claim.verdict == HOLDS
    assert "-0.2000" in claim.because
    assert "esft_gate less full from m8, minus esft_gate less full from m2" in claim.because


def test_findings_name_what_validation_chose(tmp_path):
    """On test documents the other method is better, on both tasks."""
    base = make_base(tmp_path, tasks=("law", "code"))
    chosen = {"law": "esft_gate", "code": "full"}
    for task, best in chosen.items():
        for method in ("esft_gate", "full"):
            won = method == best
            make_tuned(
                tmp_path, base, method, task, change=-0.2 if won else -0.4,
                final={"best_loss": 1.5 if won else 1.6},
            )  # fmt: skip
    (sentence,) = findings(study_of(tmp_path))
    assert "law esft_gate (-0.2000, general text +0.1000)" in sentence
    assert "code full (-0.2000, general text +0.1000)" in sentence


# ---- apart from training


def test_fine_tunings_are_no_points_of_a_scaling_fit_and_no_treatments(tmp_path):
    base = make_base(tmp_path)
    run = make_tuned(tmp_path, base)
    found = evidence(tmp_path)
    assert [one.name for one in found.trained] == [base.name]
    edit_json(run / "final.json", eval={"loss": 2.0})
    edit_json(base / "final.json", eval={"loss": 2.5})
    try:
        excluded = dict(from_runs([tmp_path]).excluded)
    except ConfigError as error:
        excluded = {run.name: str(error)}
    assert "is fine-tuned" in excluded[run.name]


def test_scores_of_a_base_alone_are_no_study(tmp_path):
    make_base(tmp_path)
    study = study_of(tmp_path)
    assert not study.cells and not study.notes and not claims(study) and not caveats(study)
    assert json.loads((tmp_path / "base" / "tasks" / "law.json").read_text())["documents"] == 12
