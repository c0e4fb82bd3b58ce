"""Interventions on whole models: what must not change, what must, one program per sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import probe_runs
import pytest

from moejax.analysis.clusters import clustered_mean
from moejax.analysis.intervals import mean_of
from moejax.analysis.interventions import find_sweeps, read_sweep
from moejax.analysis.traces.labels import tokens_hash
from moejax.config import ConfigError
from moejax.experts import MoeConfig, WidthPlan
from moejax.probe import OpenedRun, open_run, open_text
from moejax.probe.corpus import Text
from moejax.probe.interventions import (
    KINDS,
    Evaluator,
    Intervention,
    make_losses,
    parse_values,
    points,
    sweep,
    write_sweeps,
)
from moejax.probe.observe import observer
from moejax.probe.opened import Restored
from moejax.probe.program import make_pass
from moejax.probe.rows import validation_rows
from moejax.probe.tracing import trace
from moejax.routing.capacity import CapacityConfig
from moejax.routing.routers import MoEPlusPlus, ReMoE, SigmoidBias, TopK, TopP


def layer(router: Any, **fields: Any) -> MoeConfig:
    return MoeConfig(
        **{"experts": 6, "widths": WidthPlan(mean=8), "losses": probe_runs.NONE, "backend": "loop"}
        | {"router": router}
        | fields
    )


MANY = {
    "plus": layer(MoEPlusPlus(k=2, renormalise=True)),
    "sigmoid": layer(SigmoidBias(k=2, groups=3, groups_kept=2), shared_width=8),
    "relu": layer(ReMoE(k=2), capacity=CapacityConfig(factor=0.7)),
    "raw": layer(TopK(k=2, renormalise=False)),
}
MIXED = ("unequal", *MANY)  # layers 0 to 4


@dataclasses.dataclass
class Subject:
    """A model that nobody trained, and its untouched losses."""

    run: OpenedRun
    restored: Restored
    text: Text
    evaluator: Evaluator
    losses: Any

    def sweep(self, what: str, *values: Any, **conventions: Any) -> Any:
        intervention = Intervention(what, values, **conventions)
        say: Callable[[str], None] = lambda line: None  # noqa: E731
        return sweep(self.run, self.text, self.restored, self.evaluator, intervention, say)


def subject(trained: OpenedRun, layers: tuple[str, ...], **variants: MoeConfig) -> Subject:
    run, restored = probe_runs.untrained(trained, layers, **variants)
    losses = make_losses(run.model)
    rows = validation_rows(trained.dataset, 4, run.experiment.data.seq_len, 4096)
    text = open_text(trained, "validation")
    return Subject(run, restored, text, Evaluator(run, rows, losses), losses)


@pytest.fixture(scope="module")
def mixed(trained: OpenedRun) -> Subject:
    """Five kinds of routers; the first layer has experts of different widths and a shared one."""
    return subject(trained, MIXED, **MANY)


@pytest.fixture(scope="module")
def stacked(trained: OpenedRun) -> Subject:
    """Two equal layers, scanned: top-p of unequal experts with a shared one."""
    return subject(trained, ("unequal", "unequal"))


def without(subject: Subject, *names: str) -> Restored:
    """The same parameters, with some arrays of experts set to 0."""
    params = jax.tree.map(lambda leaf: leaf, subject.restored.params)
    for segment in params["segments"].values():
        for block in segment.values():
            for path in names:
                owner, _, name = path.partition("/")
                if owner in block["ffn"]:
                    found = block["ffn"][owner]
                    found[name] = np.zeros_like(found[name])
    return dataclasses.replace(subject.restored, params=params)


def test_nothing_taken_away_is_the_untouched_model(mixed: Subject) -> None:
    """And all experts taken away is a model whose experts return 0: one program for both."""
    found = mixed.sweep("disable_top", 0, 1, 6)
    none, one, everything = found.rows
    assert none.change.mean == pytest.approx(0, abs=1e-6)
    assert none.change.high - none.change.low < 1e-6
    np.testing.assert_array_equal(none.active_L, found.untouched.active_L)
    np.testing.assert_array_equal(none.width_L, found.untouched.width_L)
    assert abs(one.change.mean) > 1e-3
    silent = without(mixed, "experts/down_NUD")
    nll_S, _, _ = mixed.evaluator(silent, None)
    want = nll_S.sum() / mixed.evaluator.count_S.sum()
    assert everything.loss.mean == pytest.approx(want, abs=1e-6)
    assert (everything.active_L == 0).all() and (everything.width_L == 0).all()
    assert everything.shared_L.tolist() == [4, 0, 8, 0, 0], "the shared expert stays"
    assert mixed.losses._cache_size() == 2, "the untouched model, and one program for all values"


def test_k_at_test_time(mixed: Subject) -> None:
    """Only layers whose rule has a k; the others stay as they are."""
    before = mixed.losses._cache_size()
    found = mixed.sweep("k", 1, 2, 4, layers="1,2,4")
    acts, rest = [1, 2, 4], [0, 3]
    for k, row in zip((1, 2, 4), found.rows, strict=True):
        assert row.active_L[acts].tolist() == [k, k, k] and row.layers == (1, 2, 4)
    # Layer 0 reads nothing that has changed.
    assert found.rows[0].active_L[0] == found.untouched.active_L[0] and rest[0] == 0
    assert found.rows[1].change.mean == pytest.approx(0, abs=1e-6)
    assert abs(found.rows[0].change.mean) > 1e-4 < abs(found.rows[2].change.mean)
    assert mixed.losses._cache_size() == before + 1


def test_p_at_test_time(stacked: Subject) -> None:
    values = (0.1, 0.3, 0.5, 0.9, 1.0)
    before = stacked.losses._cache_size()
    found = stacked.sweep("p", *values)
    active = np.array([row.active_L for row in found.rows])
    # The layers after it read other hidden states; the first one's counts can only grow.
    assert (np.diff(active[:, 0]) >= 0).all() and active[0, 0] < active[-1, 0]
    assert (active[-1] == 4).all(), "k_max holds at p=1 too"
    trained = found.rows[values.index(0.5)]
    assert trained.change.mean == pytest.approx(0, abs=1e-6)
    assert stacked.losses._cache_size() <= before + 2


def test_each_layer_alone(stacked: Subject) -> None:
    found = stacked.sweep("p", 0.1, 1.0, layers="each")
    assert [(row.value, row.layers) for row in found.rows] == [
        ("0.1", (0,)), ("1.0", (0,)), ("0.1", (1,)), ("1.0", (1,)),
    ]  # fmt: skip
    plain_L = found.untouched.active_L
    assert (found.rows[1].active_L[0], found.rows[3].active_L[1]) == (4, 4)
    assert found.rows[3].active_L[0] == found.rows[2].active_L[0] == plain_L[0]


def test_a_routed_expert_for_the_shared_one(stacked: Subject) -> None:
    found = stacked.sweep("shared_for_routed", 0, 1, layers="0")
    bare, more = found.rows
    plain_L = found.untouched.active_L
    assert bare.active_L[0] == plain_L[0] and more.active_L[0] == plain_L[0] + 1
    assert found.untouched.shared_L.tolist() == [4, 4]
    assert bare.shared_L.tolist() == more.shared_L.tolist() == [0, 4]
    both = stacked.sweep("shared_for_routed", 0).rows[0]
    # Gates of 0 make the hidden units of a SwiGLU 0.
    nll_S, _, _ = stacked.evaluator(without(stacked, "shared/gate_FD"), None)
    want = nll_S.sum() / stacked.evaluator.count_S.sum()
    assert both.loss.mean == pytest.approx(want, abs=1e-6)
    assert abs(both.change.mean) > 1e-3


def test_dropping_one_expert_is_silencing_it(stacked: Subject) -> None:
    """With its slots left empty and the weights as they are, an expert of zeros says the same."""
    found = stacked.sweep("drop_one", when="after", renormalise=False)
    spec = stacked.run.model.groups[0].config.spec
    assert [(row.layers, row.value) for row in found.rows] == [
        ((layer,), str(expert)) for layer in (0, 1) for expert in range(6)
    ]
    for row in found.rows:
        expert = int(row.value)
        params = jax.tree.map(np.copy, stacked.restored.params)
        rows = slice(spec.starts[expert], spec.starts[expert] + spec.units[expert])
        params["segments"]["0"]["0"]["ffn"]["experts"]["down_NUD"][row.layers[0], rows] = 0
        nll_S, active_L, _ = stacked.evaluator(
            dataclasses.replace(stacked.restored, params=params), None
        )
        want = nll_S.sum() / stacked.evaluator.count_S.sum()
        assert row.loss.mean == pytest.approx(want, abs=1e-6)
        # Expert 5 is wide: its hidden units are no longer computed.
        assert row.active_L[row.layers[0]] <= active_L[row.layers[0]]
    lost_E = [found.untouched.active_L[0] - row.active_L[0] for row in found.rows[:6]]
    assert sum(lost_E) == pytest.approx(found.untouched.active_L[0])


def test_a_share_of_the_experts(stacked: Subject) -> None:
    """Of 6 experts 1/4 are 1.5, so 2."""
    values = parse_values("disable_top", "1/4,2")
    share, count = stacked.sweep("disable_top", *values, layers="1").rows
    assert (share.value, count.value) == ("1/4", "2") and share.loss == count.loss


# ---- the file


def test_the_file_and_its_bytes(trained: OpenedRun, tmp_path: Path) -> None:
    text = open_text(trained, "validation")
    intervention = Intervention("drop_one", (0, 3))
    said: list[str] = []
    (path,) = write_sweeps(trained, text, [None], intervention, 4096, tmp_path / "a", said.append)
    (again,) = write_sweeps(trained, text, [4], intervention, 4096, tmp_path / "b", said.append)
    assert path.name == "4.json" and path.read_bytes() == again.read_bytes()
    assert len(said) == 10 and said[1].split()[:2] == ["untouched", "none"]
    found = read_sweep(path)
    assert (found.what, found.when, found.renormalise, found.step) == (
        "drop_one",
        "before",
        True,
        4,
    )
    assert found.routers == ("top_p",) and found.layers_L.tolist() == [1]
    assert [(row.value, row.layers) for row in found.rows] == [("0", (1,)), ("3", (1,))]
    assert found.corpus == "validation" and found.tokens > found.sequences > 1
    rows = validation_rows(trained.dataset, 4, trained.experiment.data.seq_len, 4096)
    made = trace(trained, trained.restore(4), rows, make_pass(trained.model, observer(probs=True)))
    assert found.tokens_sha256 == tokens_hash(made)
    assert made.loss_T is not None and made.active_LT is not None and made.width_LT is not None
    assert found.untouched.loss.mean == pytest.approx(np.nanmean(made.loss_T), rel=1e-6)
    np.testing.assert_allclose(found.untouched.active_L, made.active_LT.mean(1))
    np.testing.assert_allclose(found.untouched.width_L, made.width_LT.mean(1))


@pytest.mark.slow
def test_on_several_devices_it_is_the_same_sweep(trained: OpenedRun, tmp_path: Path) -> None:
    found = []
    for devices in (1, 2):
        run = open_run(trained.root, devices=devices)
        text, folder = open_text(run, "validation"), tmp_path / str(devices)
        intervention = Intervention("shared_for_routed", (0, 1))
        found.append(read_sweep(*write_sweeps(run, text, [None], intervention, 4096, folder)))
    one, two = found
    assert one.tokens_sha256 == two.tokens_sha256
    for a, b in zip((one.untouched, *one.rows), (two.untouched, *two.rows), strict=True):
        assert a.loss.mean == pytest.approx(b.loss.mean, abs=2e-3)
        np.testing.assert_allclose(a.active_L, b.active_L, atol=2e-3)


def test_conventions_have_folders_of_their_own(tmp_path: Path) -> None:
    assert Intervention("k").folder == "k"
    odd = Intervention("disable_top", when="after", renormalise=False, layers="1,3")
    assert odd.folder == "disable_top-after-raw-layers_1_3"
    for folder in ("k/song/10", "k/song/9", odd.folder + "/tale/1", "k/song/x"):
        path = tmp_path / "interventions" / f"{folder}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    found = [(file.folder, file.corpus, file.step) for file in find_sweeps(tmp_path)]
    assert found == [(odd.folder, "tale", 1), ("k", "song", 9), ("k", "song", 10)]


# ---- uncertainty


def test_intervals_are_those_of_sequences() -> None:
    rng = np.random.default_rng(0)
    means_S = rng.normal(3, 1, 12)
    equal = clustered_mean(means_S * 7, np.full(12, 7.0))
    want = mean_of(means_S.tolist())
    assert equal.mean == pytest.approx(want.mean)
    assert equal.high - equal.mean == pytest.approx(want.half_width)
    assert equal.mean - equal.low == pytest.approx(want.half_width)
    one = clustered_mean(np.array([6.0, 0.0]), np.array([3.0, 0.0]))
    assert one.mean == 2 and np.isnan([one.low, one.high]).all()
    assert np.isnan(clustered_mean(np.zeros(1), np.zeros(1)).mean)


def test_intervals_cover_the_mean_of_uneven_sequences() -> None:
    """Tokens of a sequence are alike: an interval over tokens would be several times too narrow."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        count_S = rng.integers(1, 30, 40).astype(float)
        sum_S = count_S * (2 + rng.normal(0, 1, 40)) + rng.normal(0, 0.1, 40)
        found = clustered_mean(sum_S, count_S)
        covered += found.low <= 2 <= found.high
    assert 0.9 < covered / 400 < 0.99


# ---- what means nothing is one line


def refused(action: Callable[[], Any], *words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        action()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


REFUSED = [
    (Intervention("disable"), "did you mean 'disable_top'"),
    (Intervention("p"), "layer 1", "nearest valid --what=k", "or --layers=0"),
    (Intervention("p", layers="3"), "remoe", "a router like top_p"),
    (Intervention("k"), "top_p", "nearest valid --what=p", "or --layers=1,2,4"),
    (Intervention("k", layers="3"), "remoe", "a router like top_k"),
    (Intervention("k", (0,), layers="1"), "k=0", "nearest valid value 1"),
    (Intervention("k", (5,), layers="1,2"), "k=5", "nearest valid value 4"),
    (Intervention("p", (0.0,), layers="0"), "nearest valid value 0.01"),
    (Intervention("p", (1.5,), layers="0"), "nearest valid value 1.0"),
    (Intervention("disable_top", (7,)), "nearest valid value 6"),
    (Intervention("drop_one", (6,)), "nearest valid value 5"),
    (Intervention("drop_one", when="befor"), "did you mean 'before'"),
    (Intervention("k", when="after", layers="1"), "takes no expert away"),
    (Intervention("k", renormalise=False, layers="1"), "nearest valid --renormalise"),
    (Intervention("drop_one", layers="7"), "layer 7 is no MoE layer; nearest valid 4"),
    (Intervention("drop_one", layers="al"), "did you mean 'all'"),
    (Intervention("shared_for_routed"), "no shared expert", "or --layers=0,2"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case[1])
def test_what_means_nothing_is_one_line(mixed: Subject, case: tuple[Any, ...]) -> None:
    refused(lambda: points(mixed.run.model, case[0]), *case[1:])


def test_routers_that_do_not_choose_by_score(trained: OpenedRun) -> None:
    run, _ = probe_runs.untrained(trained, ("dense", "hash", "choice"))
    hint = "nearest valid --what=drop_one --when=after"
    refused(lambda: points(run.model, Intervention("disable_top")), "hash of layer 1", hint)
    refused(lambda: points(run.model, Intervention("drop_one")), "nearest valid --when=after")
    refused(lambda: points(run.model, Intervention("p", layers="2")), "expert_choice", "top_p")
    for what in ("k", "p"):
        refused(lambda w=what: points(run.model, Intervention(w)), "a router like")
    assert len(points(run.model, Intervention("drop_one", when="after"))) == 8
    dense, _ = probe_runs.untrained(trained, ("dense",))
    refused(lambda: points(dense.model, Intervention("drop_one")), "no MoE layer")


def test_a_router_of_ones_own_is_not_taken_for_another() -> None:
    @dataclasses.dataclass(frozen=True)
    class Own(TopK):
        pass

    own = layer(Own(k=2))
    assert "nearest valid a router like top_k" in KINDS["k"].refuses(own, "before")
    for what in ("drop_one", "disable_top"):
        assert "nearest valid --when=after" in KINDS[what].refuses(own, "before")
        assert not KINDS[what].refuses(own, "after")
        assert not KINDS[what].refuses(layer(TopK(k=2)), "before")


def test_values_are_read_strictly() -> None:
    assert parse_values("k", "1, 2,2") == (1, 2)
    assert parse_values("p", ".5,1") == (0.5, 1.0) and parse_values("p", "") == ()
    for what, words in (
        ("k", "two"), ("k", "1.5"), ("p", "nan"), ("disable_top", "1/0"), ("p", "9" * 99),
    ):  # fmt: skip
        refused(lambda a=(what, words): parse_values(*a), "is no value of", "nearest valid e.g.")
    refused(lambda: parse_values("q", "1"), "unknown intervention")


def test_too_many_tokens_are_refused(trained: OpenedRun, tmp_path: Path) -> None:
    text = open_text(trained, "validation")
    refused(
        lambda: write_sweeps(trained, text, [None], Intervention("p"), 0, tmp_path),
        "--tokens=0", "nearest valid value 1",
    )  # fmt: skip


def test_default_values_fit_the_model(mixed: Subject) -> None:
    model = mixed.run.model
    for what, layers, want in (
        ("disable_top", "all", ["0", "1", "2", "3", "4"]),
        ("shared_for_routed", "0,2", ["0", "1"]),
        ("k", "1,2,4", ["1", "2", "3", "4"]),  # the grouped router reaches 4 experts
    ):
        made = points(model, Intervention(what, layers=layers))
        assert [str(point.value) for point in made] == want
    made = points(model, Intervention("p", layers="0"))
    assert len(made) == 10 and isinstance(model.groups[0].config.router, TopP)
    assert len(points(model, Intervention("drop_one"))) == 30 and set(KINDS) >= {"drop_one"}
