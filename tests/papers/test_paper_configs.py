"""Paper configs: they build, have the published sizes, and `quick` shrinks nothing but sizes."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import jax
import paper_configs
import pytest
from paper_configs import load, module, sizes

from moejax.config import ConfigError, counts, to_plain
from moejax.experts import fine_grained
from moejax.routing import ROUTERS, LinearRouter

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENT = REPOSITORY / "docs" / "papers.md"
PAPERS = sorted(
    path.stem
    for path in (REPOSITORY / "configs" / "papers").glob("*.py")
    if not path.stem.startswith("_")
)
VARIANTS = paper_configs.variants()

SIZES = {
    "model.vocab_size",
    "model.d_model",
    "model.num_layers",
    "model.ffn_width",
    "model.attention.heads",
    "model.attention.kv_heads",
    "model.attention.head_dim",
    "model.attention.q_lora_rank",
    "model.attention.kv_lora_rank",
    "model.attention.qk_nope_head_dim",
    "model.attention.qk_rope_head_dim",
    "model.attention.v_head_dim",
    "model.moe.widths.mean",
    "model.moe.widths.unit",
    "model.moe.shared_width",
    "data.bpe_vocab_size",
    "data.seq_len",
    "data.limit_bytes",
    "schedule.warmup",
    "train.batch_size",
    "train.steps",
    "evaluation.batch_size",
    "evaluation.max_tokens",
    "evaluation.trace_tokens",
}
"""What `quick` may change; a router, loss, coefficient, schedule or expert count is not here."""


def test_every_paper_is_here() -> None:
    assert sorted(paper_configs.MAIN) == PAPERS
    for paper, variant in paper_configs.MAIN.items():
        assert next(iter(module(paper).VARIANTS)) == variant
        assert module(paper).get_config() == module(paper).get_config(f"variant={variant}")


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("paper, variant", VARIANTS)
def test_every_variant_builds_without_tracing(
    paper: str, variant: str, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a config makes no array and traces nothing")

    for name in ("jit", "eval_shape", "make_jaxpr", "device_put"):
        monkeypatch.setattr(jax, name, refuse)
    for name in ("key", "normal", "uniform"):
        monkeypatch.setattr(jax.random, name, refuse)
    made = load(paper, variant, quick=quick)
    assert made.name == f"{paper}-{variant}"
    assert made.data.corpus == "embedded"
    assert made.total_steps >= 3
    counts.parameters(made.model.shape())


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {path: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{path}.{key}" if path else key)
    return found


@pytest.mark.parametrize("paper, variant", VARIANTS)
def test_quick_shrinks_sizes_only(paper: str, variant: str) -> None:
    full, quick = (flat(to_plain(load(paper, variant, quick=q))) for q in (False, True))
    assert full.keys() == quick.keys()
    changed = {key for key in full if full[key] != quick[key]}
    assert changed <= SIZES, changed - SIZES
    assert {"model.d_model", "model.num_layers", "data.seq_len", "train.steps"} <= changed


@pytest.mark.parametrize("paper, variant", VARIANTS)
def test_quick_keeps_the_proportions(paper: str, variant: str) -> None:
    """The published pattern of layers, and what share of a layer's units each expert has."""
    full, quick = (load(paper, variant, quick=q).model for q in (False, True))
    assert [moe is not None for moe in quick.plan()] == [
        moe is not None for moe in full.plan()[: quick.num_layers]
    ]
    if full.moe is None or quick.moe is None:
        return
    assert sum(moe is not None for moe in quick.plan()) == 2
    before, after = full.moe.spec, quick.moe.spec
    assert [w / sum(after.widths) for w in after.widths] == [
        w / sum(before.widths) for w in before.widths
    ]
    assert after.units == before.units
    share = full.moe.shared_width / full.moe.widths.mean
    assert quick.moe.shared_width == pytest.approx(share * quick.moe.widths.mean, abs=1)


# ---- published sizes


@pytest.mark.parametrize(
    "paper, variant, total, active",
    [
        ("dynamic_moe", "dense_374m", 373_817_344, 373_817_344),  # A.6
        ("hmoe", "dense_0.4b", 417_202_176, 417_202_176),  # B.7
        ("hmoe", "top_k_0.4b", 417_202_176, 162_398_208),  # B.7
        ("hmoe", "moe_top_k_0.4b", 417_202_176, 162_398_208),  # B.7
        ("hmoe", "dense_3b", 1_323_827_200, 1_323_827_200),  # B.7: Dense-1B
        ("hmoe", "top_k_3b", 2_582_118_400, 770_179_072),  # B.7
    ],
)
def test_exact_parameter_counts(paper: str, variant: str, total: int, active: int) -> None:
    count = sizes(paper, variant)
    assert (count.total, count.active) == (total, active)


@pytest.mark.parametrize(
    "paper, variant, total, active",
    [
        ("dynamic_moe", "dense_570m", "0.57", "0.57"),  # A.3
        ("dynamic_moe", "top_2", "3.488", "0.5814"),  # A.3
        ("deepseek_moe", "2b", "2.0", "0.3"),  # C.3
        ("deepseek_moe", "dense", "0.2", "0.2"),  # C.4
        ("deepseek_moe", "16b", "16.4", "2.8"),  # C.3
        ("deepseek_moe", "145b", "144.6", "22.2"),  # C.3
        ("olmoe", "1b_7b", "6.9", "1.3"),  # H.4
        ("mixtral", "8x7b", "46.7", "12.9"),
        ("qwen3_moe", "30b_a3b", "30.5", "3.3"),
        ("remoe", "dense", "0.182", "0.182"),  # H.5
        ("remoe", "remoe", "0.777", "0.182"),
        ("remoe", "remoe_469m", "2.58", "0.47"),
        ("remoe", "remoe_978m", "5.73", "0.978"),
        ("moe_plus_plus", "0.6b", "0.6", "0.2"),  # H.6: the names
        ("moe_plus_plus", "1b", "1.0", "0.2"),
        ("moe_plus_plus", "2b", "1.9", "0.2"),
    ],
)
def test_published_parameter_counts(paper: str, variant: str, total: str, active: str) -> None:
    """To the digits that are published, in billions."""
    count = sizes(paper, variant)
    assert (billions(count.total, total), billions(count.active, active)) == (total, active)
    if paper in COUNTS_STATED:
        assert says(module(paper).__doc__, total, active)
        assert variant == "dense" or f"| {total}B, {active}B |" in DOCUMENT.read_text()


COUNTS_STATED = ("deepseek_moe", "olmoe", "mixtral", "qwen3_moe")
"""Presets whose docstring names the published counts and what they count."""


def billions(number: float, like: str) -> str:
    """The number in billions, to as many digits as `like` has."""
    return f"{number / 1e9:.{len(like.partition('.')[2])}f}"


def says(document: str, total: str, active: str) -> bool:
    """Whether the preset's docstring states the two published numbers."""
    return bool(re.search(rf"\b{total}B(?: total)?, {active}B\b", document))


@pytest.mark.parametrize(
    "paper, variant, total, active",
    [
        ("deepseek_v2", "lite", "15.7", "2.4"),  # C.6
        ("deepseek_v2", "v2", "236", "21"),  # C.6
        ("deepseek_v3", "v3", "671", "37"),  # the abstract
    ],
)
def test_published_parameter_counts_without_an_active_embedding(
    paper: str, variant: str, total: str, active: str
) -> None:
    """DeepSeek counts the head as active and the embedding not."""
    count = sizes(paper, variant)
    assert billions(count.total, total) == total
    assert billions(count.active - count.embedding, active) == active
    assert says(module(paper).__doc__, total, active)
    assert f"| {total}B, {active}B |" in DOCUMENT.read_text()
    assert sizes(paper, f"{variant}_long") == count


@pytest.mark.parametrize(
    "paper, variant, published, elsewhere",
    [
        ("mixtral", "8x7b", 46_702_792_704, 0),
        ("qwen3_moe", "30b_a3b", 30_532_122_624, 0),
        ("deepseek_v2", "lite", 15_706_484_224, 0),
        ("deepseek_v2", "v2", 235_741_434_880, 0),
        ("deepseek_v3", "v3", 671_026_419_200, 58 * 256),  # router biases: state here
        ("olmoe", "1b_7b", 6_919_161_856, 16 * 2 * (2048 - 128)),  # QK-norm over all heads
    ],
)
def test_released_checkpoints_have_as_many_numbers(
    paper: str, variant: str, published: int, elsewhere: int
) -> None:
    """Every number of the safetensors files on Hugging Face: routers and norm scales too."""
    assert sizes(paper, variant).everything == published - elsewhere


def test_deepseek_moe_16b_counts_everything() -> None:
    """C.9: with routers and norm scales, 16.376B; 2.825B active."""
    count = sizes("deepseek_moe", "16b")
    assert count.everything == 16_375_728_128
    assert round(count.active / 1e9, 3) == 2.825


def ffn(count: counts.Parameters) -> tuple[int, float]:
    """FFN parameters, total and active: routed, shared and dense."""
    always = count.shared_experts + count.dense_ffn
    return count.experts + always, count.active_experts + always


def test_deepseek_moe_2b_and_its_matched_baselines() -> None:
    """C.3, C.4, C.9: experts of 1.887B, 0.236B active; GShard x1.5 2.83B."""
    names = ("2b", "gshard", "switch", "hash", "dense_x16", "gshard_x1.5", "dense", "dense_x4")
    found = {name: ffn(sizes("deepseek_moe", name)) for name in names}
    total, active = found["2b"]
    assert (round(total / 1e9, 3), round(active / 1e9, 3)) == (1.887, 0.236)
    assert found["gshard"] == found["2b"]
    assert found["switch"] == found["hash"] == (total, active / 2)
    assert found["dense_x16"] == (total, total)
    assert found["dense"] == (total / 16, total / 16)
    assert found["dense_x4"] == (total / 4, total / 4)
    assert found["gshard_x1.5"] == (1.5 * total, 1.5 * active)
    assert round(found["gshard_x1.5"][0] / 1e9, 2) == 2.83


def test_deepseek_moe_2b_is_gshard_cut_fine() -> None:
    gshard, fine = (load("deepseek_moe", name).model.moe for name in ("gshard", "2b"))
    assert gshard is not None
    assert fine_grained(gshard, m=4, shared=1) == fine


@pytest.mark.parametrize("size", ["0.4b", "3b"])
def test_hmoe_baselines_are_of_equal_size(size: str) -> None:
    names = [name for _, name in VARIANTS if name.endswith(f"_{size}") and "dense" not in name]
    assert len(names) == 8
    assert len({sizes("hmoe", name).total for name in names}) == 1
    assert sizes("hmoe", f"top_k_{size}").active == sizes("hmoe", f"moe_top_k_{size}").active
    assert sizes("hmoe", f"top_p_{size}").active == sizes("hmoe", f"moe_top_p_{size}").active
    widths = {name: load("hmoe", name).model.moe.spec.widths for name in names}  # type: ignore[union-attr]
    assert {sum(width) for width in widths.values()} == {{"0.4b": 12_288, "3b": 32_768}[size]}
    step = {"0.4b": 96, "3b": 256}[size]
    for rule in ("top_p", "top_k"):  # B.2, under both of them
        assert widths[f"{rule}_{size}"] == tuple(step * n for n in range(9, 24, 2))
        hybrid = tuple(8 * step * n for n in (1, 1, 1, 1, 2, 2, 4, 4))
        assert widths[f"{rule}_hybrid_{size}"] == hybrid
        geometric = widths[f"{rule}_geometric_{size}"]
        ideal = [sum(geometric) * 2**e / 255 for e in range(8)]
        unit = {"0.4b": 64, "3b": 128}[size]
        assert all(abs(g - i) < unit for g, i in zip(geometric, ideal, strict=True))


@pytest.mark.parametrize("size", ["0.4b", "3b"])
@pytest.mark.parametrize("rule", ["top_p", "top_k"])
def test_hmoe_strategies_differ_in_their_widths_alone(rule: str, size: str) -> None:
    plain = to_plain(load("hmoe", f"{rule}_{size}"))
    for strategy in ("geometric", "hybrid"):
        other = to_plain(load("hmoe", f"{rule}_{strategy}_{size}"))
        changed = {key for key, value in flat(other).items() if flat(plain)[key] != value}
        assert changed == {"name", "model.moe.widths.strategy", "model.moe.widths.unit"}


TABLE_1 = {
    "0.4b": (7e19, {"dense": 417e6, "moe_top_k": 163e6, "moe_top_p": 173e6, "top_k": 153e6,
                    "top_p": 173e6}),
    "3b": (2.6e20, {"dense": 1.32e9, "moe_top_k": 0.77e9, "moe_top_p": 1.23e9, "top_k": 0.70e9,
                    "top_p": 0.68e9}),
}  # fmt: skip
"""HMoE (B.4, B.5): the budget in FLOPs and the active parameters of its models."""


@pytest.mark.parametrize("size", TABLE_1)
def test_hmoe_models_train_for_equal_flops(size: str) -> None:
    budget, published = TABLE_1[size]
    for name, active in published.items():
        made = load("hmoe", f"{name}_{size}")
        shape = made.model.shape()
        planned = counts.parameters(shape).active
        per_token = counts.flops_per_token(shape, made.data.seq_len) + 6 * (active - planned)
        spent = per_token * made.total_steps * made.tokens_per_step
        assert spent == pytest.approx(budget, rel=0.005), name


@pytest.mark.parametrize(
    "paper, moe, dense", [("remoe", "remoe", "dense"), ("olmoe", "1b_7b", "dense_1b")]
)
def test_dense_baselines_have_the_active_parameters(paper: str, moe: str, dense: str) -> None:
    assert sizes(paper, moe).active == sizes(paper, dense).active == sizes(paper, dense).total


def test_remoe_baselines_are_of_equal_size() -> None:
    names = ("remoe", "top_k", "hash", "expert_choice", "dense_x8")
    assert len({sizes("remoe", name).total for name in names}) == 1
    assert len({sizes("remoe", name).active for name in names[:4]}) == 1


@pytest.mark.parametrize("size", ["0.6b", "1b", "2b", "7b"])
def test_moe_plus_plus_baselines_are_of_equal_size(size: str) -> None:
    """H.6: and MoE++ computes `tau N / (tau N + Z)` of it, at tau = 1 when routing is even."""
    plus, plain = sizes("moe_plus_plus", size), sizes("moe_plus_plus", f"moe_{size}")
    assert plus.total == plain.total
    moe = load("moe_plus_plus", size).model.moe
    assert moe is not None
    share = moe.experts / moe.num_experts
    assert plus.active_experts == pytest.approx(share * plain.active_experts)


# ---- the files and their document


LINEAR = {
    cls.__name__
    for cls in map(ROUTERS.get, ROUTERS.names())
    if issubclass(cls, LinearRouter) and cls.__module__.startswith("moejax.")
}


@pytest.mark.parametrize("paper", PAPERS)
def test_no_router_starts_from_a_default(paper: str) -> None:
    """Its initial standard deviation stands in the file, where its source can stand beside it."""
    source = (REPOSITORY / "configs" / "papers" / f"{paper}.py").read_text()
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    routers = [call for call in calls if getattr(call.func, "id", "") in LINEAR]
    assert routers
    for call in routers:
        names = [word.arg for word in call.keywords]
        assert "init_std" in names, f"{paper}.py:{call.lineno}: a router without its init_std"


@pytest.mark.parametrize("paper", PAPERS)
def test_each_file_says_what_it_is(paper: str) -> None:
    text = module(paper).__doc__
    assert f"--config=configs/papers/{paper}.py:variant={paper_configs.MAIN[paper]}" in text
    assert "differs" in text
    assert "embedded corpus" in text or "corpus" in text
    assert re.search(r"\((19|2\d)\d\d\.\d{5}", text), "no arXiv number"


def test_an_unknown_variant_is_one_line_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"variant='top_k': must be one of .*did you mean"
    ) as error:
        module("hmoe").get_config("variant=top_k")
    assert "\n" not in str(error.value)


def test_the_document_has_the_sizes_of_every_variant() -> None:
    """To renew it: `PYTHONPATH=.:tests/papers python -m paper_configs`."""
    document = DOCUMENT.read_text()
    assert paper_configs.table() in document
    for paper in PAPERS:
        assert f"`{paper}.py`" in document
