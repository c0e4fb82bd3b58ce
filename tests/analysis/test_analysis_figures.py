"""Numbers behind the figures against slow, obvious counts; and what the claims say of them."""

from __future__ import annotations

import csv
import math
from collections import defaultdict

import numpy as np
import pytest
from run_factory import make_run, save, write_json

from moejax.analysis.evidence import Evidence, Scaling, spread_layers, surfaces
from moejax.analysis.figures import (
    FIGURES,
    contours,
    forest,
    imbalance,
    isoflop_valleys,
    pareto,
    scaling_law,
    seed_bands,
)
from moejax.analysis.figures.traced import (
    coactivation,
    confidence,
    distribution,
    languages,
    paths,
    probability,
    relations,
    specialisation,
    stability,
    words,
)
from moejax.analysis.paper_tables import paper_tables
from moejax.analysis.report import write_report
from moejax.analysis.runs import find_runs, load_runs
from moejax.analysis.scaling import (
    Dataset,
    Options,
    Question,
    isoflop,
    make_law,
    make_points,
    study,
)
from moejax.analysis.verdicts import CANNOT_TELL, DOES_NOT, HOLDS, claims
from moejax.analysis.view import views

SHAPE = {"layers": 3, "experts": 4, "steps": 60, "trace_tokens": 240}
EMPTY = 65535


def corpus(run, step=None, seed=0):
    """A trace as `tools.trace` writes it, with sequences, labels and the router's distribution."""
    (path,) = (p for p in (run / "trace").iterdir() if p.is_file())
    with np.load(path) as file:
        arrays = dict(file)
    layers, tokens = arrays["active_LT"].shape
    at = np.arange(tokens)
    rng = np.random.default_rng(seed)
    for i in range(layers):  # no expert twice per token
        for t in range(tokens):
            k = min(int(arrays["active_LT"][i, t]), 4)
            arrays["expert_LTK"][i, t] = EMPTY
            arrays["expert_LTK"][i, t, :k] = rng.permutation(4)[:k]
    arrays["active_LT"] = (arrays["expert_LTK"] != EMPTY).sum(-1).astype(np.uint16)
    arrays |= {
        "format_version": np.int32(2),
        "token_T": (at % 20).astype(np.int32),
        "sequence_T": (at // 12).astype(np.int32),
        "position_T": (at % 12).astype(np.int32),
        "domain_T": (at // 12 % 2).astype(np.uint8),
        "entropy_LT": rng.random((layers, tokens)).astype(np.float16),
        "top1_LT": rng.random((layers, tokens)).astype(np.float16),
        "need_p_Q": np.array([0.5, 0.9], np.float32),
        "need_LTQ": rng.integers(1, 5, (layers, tokens, 2)).astype(np.float16),
    }
    arrays["top1_LT"][0, :7] = np.nan
    name = path.name if step is None else f"{step:08d}.npz"
    save(run / "trace" / "books" / name, arrays)
    labels = {"format_version": 1, "corpus": "books", "domains": ["verse", "prose"]}
    labels |= {"pieces": [f"p{i} " for i in range(19)] + ["\n"]}
    write_json(run / "trace" / "books" / "labels.json", labels)
    return arrays


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Dense, top-k and hetero top-p with three seeds; the last with traces of a corpus."""
    root = tmp_path_factory.mktemp("figures")
    for kind in ("dense", "top_k", "hetero_top_p"):
        for seed in range(3):
            run = make_run(root, kind, name=f"{kind}_seed{seed}", seed=seed, **SHAPE)
    traces = (corpus(run, step=20, seed=1), corpus(run, seed=2))
    with np.load(run / "routing" / "00000060.npz") as file:
        save(run / "routing" / "00000025.npz", dict(file) | {"count_LE": file["count_LE"][::-1]})
    seen = views(load_runs(find_runs([root]))[0])
    return root, Evidence(seen, [root]), traces


def table(figure):
    assert not figure.empty
    return [dict(zip(figure.rows[0], row, strict=True)) for row in figure.rows[1:]]


def test_every_figure_is_drawn_or_says_why(made):
    _, evidence, _ = made
    for build in FIGURES:
        figure = build(evidence)
        assert bool(figure.empty) != bool(figure.charts)
        assert figure.empty or (figure.caption and len(figure.rows) > 1)
        assert not figure.empty.endswith(".")  # the page adds it
        assert len({len(row) for row in figure.rows}) <= 1


def test_forest_is_the_mean_of_differences_by_seed(made):
    _, evidence, _ = made
    rows = [r for r in table(forest.build(evidence)) if r["at"] == "tokens"]
    final = {v.name: v.summary.loss for v in evidence.runs}
    for row in rows:
        gaps = [
            final[f"{row['configuration']}_seed{s}"] - final[f"dense_seed{s}"] for s in range(3)
        ]
        assert row["difference"] == pytest.approx(np.mean(gaps))
        assert row["pairs"] == 3
    assert {row["configuration"] for row in rows} == {"top_k", "hetero_top_p"}


def test_bands_are_means_over_seeds(made):
    _, evidence, _ = made
    rows = table(seed_bands.build(evidence))
    last = [r for r in rows if r["configuration"] == "dense" and r["axis"] == "tokens"][-1]
    losses = [v.summary.loss for v in evidence.runs if v.name.startswith("dense")]
    assert last["mean_loss"] == pytest.approx(np.mean(losses)) and last["runs"] == 3


def test_experts_that_go_by_language_carry_all_its_information(tmp_path):
    run = make_run(tmp_path, "top_p", name="run", **SHAPE)
    arrays = corpus(run)
    language_T = arrays["sequence_T"] // 2 % 4
    expert_LTK = np.full_like(arrays["expert_LTK"], EMPTY)
    expert_LTK[0, :, 0] = language_T  # one expert per language; elsewhere whatever the language
    expert_LTK[1:, :, 0] = np.arange(language_T.size) % 4
    changed = {"language_T": language_T.astype(np.uint8), "expert_LTK": expert_LTK}
    (path,) = (run / "trace/books").glob("*.npz")
    save(path, arrays | changed | {"active_LT": np.ones_like(arrays["active_LT"])})
    figure = relations.build(Evidence(views(load_runs([str(run)])[0])))
    rows = [r for r in table(figure) if r["measure"] == "information of language"]
    assert rows[0]["value"] == pytest.approx(1.0)
    assert all(abs(row["value"]) < 0.05 for row in rows[1:])


def test_the_languages_furthest_over_all_runs_are_drawn():
    names = list("abcdefghi")
    first = {name: np.array([0.1 * i, 0.0]) for i, name in enumerate(names)}
    second = {"a": np.array([np.nan, 0.99]), "b": np.array([0.0, 0.0])}
    # Of a the mean is 0.495, of b 0.05, of c 0.2: b and c are nearest.
    assert languages._furthest([first, second]) == ["a", "d", "e", "f", "g", "h", "i"]


def test_the_frontier_has_the_points_that_none_beats():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, 40).astype(float), rng.integers(0, 9, 40).astype(float)
    line = pareto._frontier(x, y)
    kept = set(zip(line.x_N, line.y_N, strict=True))
    for a, b in zip(x, y, strict=True):
        beaten = any((c <= a and d <= b) and (c, d) != (a, b) for c, d in zip(x, y, strict=True))
        assert beaten == ((a, b) not in kept)


def test_imbalance_is_that_of_each_layer(made):
    _, evidence, _ = made
    rows = table(imbalance.build(evidence))
    view = next(v for v in evidence.runs if v.name == "hetero_top_p_seed2")
    rows = [r for r in rows if r["run"] == view.name and r["measure"] == "max_over_mean"]
    assert [r["step"] for r in rows] == [25, 60]
    count = view.run.routing.count_LE
    worst = [max(layer) / (sum(layer) / len(layer)) for layer in count.tolist()]
    assert rows[-1]["mean"] == pytest.approx(np.mean(worst))
    assert rows[-1]["highest_layer"] == pytest.approx(max(worst))


def test_the_corpus_is_preferred_and_named(made):
    _, evidence, _ = made
    few = evidence.traced(lambda one: one.trace.entropy_LT is not None)
    assert [one.name for one in few] == ["hetero_top_p_seed2"] and few[0].corpus == "books"
    figure = confidence.build(evidence)
    assert "Measured on books: 240 tokens. 1 of 6 MoE runs: others lack it." in figure.caption


def test_of_two_corpora_the_longer_trace_is_shown(tmp_path):
    run = make_run(tmp_path, "top_p", name="run", **SHAPE)
    arrays = corpus(run)
    (path,) = (run / "trace/books").glob("*.npz")
    whole = ("layers_L", "width_LE", "need_p_Q", "format_version")
    short = {
        name: array[:60] if array.ndim == 1 else array[:, :60]
        for name, array in arrays.items()
        if name not in whole
    }
    (run / "trace/acts").mkdir()
    save(run / "trace/acts" / path.name, arrays | short)
    evidence = Evidence(views(load_runs([str(run)])[0]))
    assert sorted(evidence.corpora) == ["", "acts", "books"]
    assert evidence.traced()[0].corpus == "books"


def test_saturation_and_churn_count_common_experts(made):
    _, evidence, (early, final) = made
    figure = stability.build(evidence)
    rows = table(figure)
    for layer in range(3):
        shares = []
        for before, after in zip(
            early["expert_LTK"][layer], final["expert_LTK"][layer], strict=True
        ):
            a, b = set(before.tolist()) - {EMPTY}, set(after.tolist()) - {EMPTY}
            shares.append(len(a & b) / len(b))
        own = {r["measure"]: r for r in rows if r["layer"] == layer}
        assert own["saturation"]["observed"] == pytest.approx(np.mean(shares))
        assert own["churn"]["observed"] == pytest.approx(1 - np.mean(shares))
        assert own["saturation"]["fraction"] == pytest.approx(20 / 60)


def test_checkpoints_on_other_tokens_are_left_out_and_said(made, tmp_path):
    runs = []
    for name, steps in (("kept", (20, 40)), ("other", (20,))):
        run = make_run(tmp_path, "top_p", name=name, **SHAPE)
        for step in steps:
            corpus(run, step=step)
        last = corpus(run)
        if name == "kept":  # one of its two is of other tokens
            save(run / "trace/books/00000020.npz", last | {"token_T": last["token_T"] + 1})
        else:
            save(run / "trace/books/00000020.npz", last | {"token_T": last["token_T"] + 2})
        runs.append(run)
    figure = stability.build(Evidence(views(load_runs(find_runs(runs))[0])))
    assert {row["run"] for row in table(figure)} == {"kept"}
    assert "kept (some: 1 earlier checkpoint traced on other tokens" in figure.caption
    assert "other (all: 1 earlier checkpoint traced on other tokens" in figure.caption
    alone = stability.build(Evidence(views(load_runs(find_runs(runs[1:]))[0])))
    assert "other (all: 1 earlier checkpoint" in alone.empty


def test_probabilities_are_counted_in_bins(made):
    _, evidence, (_, final) = made
    figure = probability.build(evidence)
    rows = table(figure)
    top1 = final["top1_LT"].astype(float)
    top1 = top1[np.isfinite(top1)]
    shares = [r for r in rows if r["quantity"] == "largest probability"]
    assert sum(r["tokens"] for r in shares) == top1.size == 3 * 240 - 7
    for row in shares:
        last = row["to"] == 1.0
        inside = [row["from"] <= v and (v < row["to"] or last) for v in top1.tolist()]
        assert row["tokens"] == sum(inside)
        assert row["share"] == pytest.approx(sum(inside) / top1.size)
    for q, p in enumerate(("0.5", "0.9")):
        own = {r["from"]: r["tokens"] for r in rows if r["p"] == p}
        need = final["need_LTQ"][..., q].ravel().tolist()
        assert own == {n: need.count(n) for n in (1, 2, 3, 4)}
    _, (_, needed) = figure.charts
    (line,) = needed.series
    at = final["need_LTQ"][..., 0].ravel().tolist()
    assert line.y_N.tolist() == pytest.approx([at.count(n) / 720 for n in range(5)])


def only(evidence, monkeypatch):
    """The evidence with the corpus alone, so that figures are of its one run."""
    kept = {"books": evidence.corpora["books"]}
    monkeypatch.setitem(evidence.__dict__, "corpora", kept)
    return evidence


def test_specialisation_counts_tokens_of_a_domain(made, monkeypatch):
    _, evidence, (_, final) = made
    rows = table(specialisation.build(only(evidence, monkeypatch)))
    assert len(rows) == 3 * 2 * 4
    for row in rows:
        domain = ("verse", "prose").index(row["domain"])
        of_domain = [t for t in range(240) if final["domain_T"][t] == domain]
        hits = sum(row["expert"] in final["expert_LTK"][row["layer"], t] for t in of_domain)
        assert row["share"] == pytest.approx(hits / len(of_domain))


def test_coactivation_distribution_and_paths_count_tokens(made, monkeypatch):
    _, evidence, (_, final) = made
    evidence = only(evidence, monkeypatch)
    sets = [[set(k.tolist()) - {EMPTY} for k in layer] for layer in final["expert_LTK"]]
    for row in table(coactivation.build(evidence))[:12]:
        own = [s for s in sets[row["layer"]] if row["expert"] in s]
        assert row["share"] == pytest.approx(sum(row["with"] in s for s in own) / len(own))
    shares = {r["quantity"]: r["value"] for r in table(distribution.build(evidence))}
    every = [len(s) for layer in sets for s in layer]
    assert shares["share with 3"] == pytest.approx(every.count(3) / len(every))
    flows = defaultdict(float)
    first = final["expert_LTK"][:, :, 0]
    for t in range(240):
        for i in (0, 1):
            flows[i, str(first[i, t]), str(first[i + 1, t])] += 1 / 240
    for row in table(paths.build(evidence)):
        key = (row["from_layer"], row["from"], row["to"])
        assert row["share"] == pytest.approx(flows[key])


def test_words_are_the_tokens_with_their_numbers(made):
    _, evidence, (_, final) = made
    figure = words.build(evidence)
    rows = table(figure)
    assert [r["text"] for r in rows[:3]] == ["p0 ", "p1 ", "p2 "] and rows[19]["text"] == "↵"
    assert rows[5]["experts"] == pytest.approx(final["active_LT"][:, 5].mean())
    ((_, chart),) = figure.charts
    assert [s.name for s in chart.shades] == [
        f"hetero_top_p_seed2: {q}" for q in ("experts", "width", "loss")
    ]
    first = " ".join(f"{i}:{final['expert_LTK'][i, 5, 0]}" for i in range(3))
    assert chart.shades[0].notes[5].endswith(f"first choice by layer {first}")


def planted(loss):
    """Three sizes by four budgets of two groups with two seeds, as `Scaling`."""
    rows = [
        (group, n, c / (6 * n), c, loss(n, c, group) * (1 + 0.001 * (seed - 0.5)), seed)
        for group in ("dense", "moe")
        for c in (1e12, 4e12, 16e12, 64e12)
        for n in (1e5, 4e5, 16e5)
        for seed in (0, 1)
    ]
    group, n, d, c, value, seed = zip(*rows, strict=True)
    run = [f"{g}-{i}" for i, g in enumerate(group)]
    points = make_points(run=run, group=group, seed=list(map(str, seed)), n=n, d=d, c=c, loss=value)
    dataset = Dataset(points)
    answer = study(dataset, Question(make_law("power"), Options(replicates=40), by_group=True))
    valleys = {g: isoflop(points.in_group(g)) for g in points.groups}
    return Scaling(answer, valleys, surfaces(dataset, Options(replicates=0)))


def test_scaling_figures_show_the_planted_law(made, monkeypatch):
    _, evidence, _ = made
    law = {"dense": (2.0, 300.0), "moe": (1.8, 300.0)}
    found = planted(lambda n, c, group: law[group][0] + law[group][1] * c**-0.2)
    monkeypatch.setitem(evidence.__dict__, "scaling", found)
    figure = scaling_law.build(evidence)
    rows = table(figure)
    assert len(rows) == 48 and max(abs(r["residual_ln"]) for r in rows) < 0.002
    assert "alpha 0.2" in figure.caption and "L_inf" in figure.caption
    charts = dict(figure.charts)
    lines = {s.name: s for s in charts["Law"].series}
    assert (lines["moe, law"].low_N <= lines["moe, law"].y_N).all()
    assert lines["moe, law"].x_N[-1] == pytest.approx(3 * 64e12)
    said = [str(c) for c in claims(evidence) if "falls faster" in c.claim]
    assert len(said) == 1 and said[0].endswith(f"{CANNOT_TELL}.") and "nan" not in said[0]
    rows = paper_tables(evidence, [])["scaling"][1]
    assert {r[2] for r in rows[1:] if r[0] == "moe"} == set(found.power.parts["moe"].fit.estimates)


def test_isoflop_shows_valleys_with_their_minima(made, monkeypatch):
    _, evidence, _ = made
    found = planted(lambda n, c, _: 2 + 0.1 * math.log(n / 4e5) ** 2 + 10 * c**-0.1)
    monkeypatch.setitem(evidence.__dict__, "scaling", found)
    rows = table(isoflop_valleys.build(evidence))
    assert len(rows) == 48
    assert [r["best_N"] for r in rows] == pytest.approx([4e5] * 48, rel=0.01)


def surface(ray):
    """A planted L(N, D) of one group: sizes by ratios of tokens, or all at one ratio."""
    sizes, ratios = (1e5, 3e5, 1e6, 3e6), (20.0,) if ray else (5.0, 20.0, 80.0)
    n, d = (np.array(v) for v in zip(*((n, r * n) for n in sizes for r in ratios), strict=True))
    loss = 1.7 + 400 * n**-0.34 + 410 * d**-0.28
    group = ["dense"] * n.size
    return Dataset(make_points(group=group, n=n, d=d, c=6 * n * d, loss=loss))


def test_contours_lie_where_the_law_has_their_loss(made, monkeypatch):
    _, evidence, _ = made
    scaling = planted(lambda n, c, group: 2.0 + 300 * c**-0.2)
    found = surfaces(surface(ray=False), Options(replicates=0))
    both = Scaling(scaling.power, {}, found | surfaces(surface(ray=True)) | {"moe": "no D"})
    monkeypatch.setitem(evidence.__dict__, "scaling", both)
    why = contours.build(evidence).empty
    assert why.startswith("dense: N and D lie on one ray") and why.endswith("; moe: no D")
    both = Scaling(scaling.power, {}, found | {"moe": "no D"})
    monkeypatch.setitem(evidence.__dict__, "scaling", both)
    figure = contours.build(evidence)
    rows = table(figure)
    lines = [r for r in rows if r["kind"] == "contour"]
    assert len({r["loss"] for r in lines}) == contours.LEVELS
    for row in lines:
        want = 1.7 + 400 * row["N"] ** -0.34 + 410 * row["D"] ** -0.28
        assert row["loss"] == pytest.approx(want, rel=2e-3)
        assert 5e5 * 0.999 <= row["D"] <= 80 * 3e6 * 1.001
    assert sum(r["kind"] == "run" for r in rows) == 12
    assert "alpha 0.34" in figure.caption and "Not fitted: moe: no D." in figure.caption


def test_claims_end_with_a_verdict(made, tmp_path):
    _, evidence, _ = made
    found = claims(evidence)
    assert {one.verdict for one in found} <= {HOLDS, DOES_NOT, CANNOT_TELL}
    (hetero,) = (c for c in found if c.claim.startswith("At equal tokens, hetero_top_p"))
    assert hetero.verdict == HOLDS and "over 3 seeds" in hetero.because
    for name in ("dense", "top_k"):
        make_run(tmp_path / "runs", name, **SHAPE)
    seen = views(load_runs(find_runs([tmp_path / "runs"]))[0])
    single = claims(Evidence(seen))
    assert single and all(c.verdict == CANNOT_TELL for c in single if c.claim.startswith("At "))
    write_report([tmp_path / "runs"], tmp_path / "report", pictures=False)
    assert "cannot tell at this scale" in (tmp_path / "report/report.html").read_text()


def test_tables_for_papers_are_written(made, tmp_path):
    root, _, _ = made
    write_report([root], tmp_path / "report", pictures=False)
    names = {path.name for path in (tmp_path / "report/tables").iterdir()}
    stems = ("runs", "seeds", "comparison-tokens", "comparison-flops", "comparison-time")
    assert names >= {f"{stem}.{kind}" for stem in stems for kind in ("md", "tex")}
    (line,) = (
        line
        for line in (tmp_path / "report/tables/comparison-tokens.md").read_text().splitlines()
        if line.startswith("| top\\_k ")
    )
    assert "| 3 |" in line and "beyond noise" in line
    with (tmp_path / "report/data/forest.csv").open() as file:
        assert math.isfinite(float(next(csv.DictReader(file))["difference"]))


def test_layers_are_spread_with_both_ends():
    assert spread_layers(60, 4) == [0, 20, 39, 59]
    assert spread_layers(2, 7) == [0, 1] and spread_layers(1, 3) == [0]
