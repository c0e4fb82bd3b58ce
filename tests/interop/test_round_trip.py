"""Hugging Face -> ours -> Hugging Face: bit for bit; and what cannot go out, and why."""

import dataclasses
import json
import tracemalloc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import FIXTURES, NAMES, drawn, imported, observe

from moejax.config import ConfigError
from moejax.config.widths import WidthPlan
from moejax.experts.config import MoeConfig
from moejax.interop import (
    FAMILIES,
    HfDirectory,
    Layout,
    choose_family,
    export,
    family_of,
    import_model,
    pad_experts,
    plan_export,
    read_model,
    write_record,
)
from moejax.interop.exporting import essence
from moejax.models import ModelConfig
from moejax.models.attention import AttentionConfig, LatentAttentionConfig
from moejax.routing.capacity import CapacityConfig
from moejax.routing.routers import ExpertChoice, SigmoidBias, TopK, TopP

GQA = AttentionConfig(heads=4, kv_heads=2, head_dim=6)


def tree_of(found):
    return {"params": found.params, "router_state": found.router_state}


def exported(found, target, source=None, **options):
    """Writes `found` again and opens it."""
    given = {"layout": found.layout, "dtypes": found.dtypes} | options
    if source is not None:
        given["original"] = source.config
    shard = given.pop("shard_bytes", 1 << 30)
    plan = plan_export(found.model, found.family, **given)
    export(target, plan, tree_of(found), shard_bytes=shard)
    return HfDirectory.open(target)


def same_tensors(mine, theirs):
    assert set(mine.names()) == set(theirs.names())
    for name in theirs.names():
        assert mine.dtype(name) == theirs.dtype(name), name
        assert mine.shape(name) == theirs.shape(name), name
        assert mine.read(name).tobytes() == theirs.read(name).tobytes(), name


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_comes_back_bit_for_bit_with_its_config(tmp_path, name):
    theirs = HfDirectory.open(FIXTURES / name)
    mine = exported(imported(name), tmp_path / "out", theirs)
    same_tensors(mine, theirs)
    assert mine.config == theirs.config


@pytest.mark.parametrize("name", NAMES)
def test_a_config_of_our_own_says_the_same_model(tmp_path, name):
    found = imported(name)
    mine = exported(found, tmp_path / "out")
    assert mine.config["architectures"] == [found.family.architecture]
    family, model = read_model(mine)
    assert family is found.family and essence(model) == essence(found.model)
    same_tensors(mine, HfDirectory.open(FIXTURES / name))
    # The family is found from the model alone (a model that was trained here has no other word),
    # where two can say it, the simpler one.
    chosen = choose_family(found.model)
    assert chosen.model_type == {"mistral": "llama"}.get(found.family.model_type, chosen.model_type)
    assert write_record(found.model, chosen)["vocab_size"] == 61


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe_fused", "deepseek_v3"])
def test_both_layouts_of_the_experts_hold_the_same_model(tmp_path, name):
    found = imported(name)
    moe = [index for index, layer in enumerate(found.model.plan()) if layer]
    for fused in {frozenset(), frozenset(moe), frozenset(moe[1:])} - {found.layout.fused}:
        layout = dataclasses.replace(found.layout, fused=fused)
        out = exported(found, tmp_path / str(len(fused)), layout=layout, dtypes=None)
        for index in moe:
            three = f"model.layers.{index}.mlp.experts.gate_up_proj"
            assert (three in out.names()) == (index in fused)
        again = import_model(out)
        assert again.layout.fused == fused
        jax.tree.map(np.testing.assert_array_equal, tree_of(again), tree_of(found))


def test_rotary_pairs_may_be_halves_in_the_file_too(tmp_path):
    found = imported("deepseek_v3")
    plan = plan_export(found.model, found.family, layout=Layout(interleaved=False))
    record = plan.record | {"rope_interleave": False}
    export(tmp_path / "out", dataclasses.replace(plan, record=record), tree_of(found))
    again = import_model(HfDirectory.open(tmp_path / "out"))
    assert not again.layout.interleaved
    jax.tree.map(np.testing.assert_array_equal, tree_of(again), tree_of(found))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_survives_float32_and_bfloat16_parameters(tmp_path, dtype):
    source = exported(imported("deepseek_v3"), tmp_path / "half", dtype=dtype)
    assert source.config["dtype"] == dtype
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert source.dtype(bias) == "F32" and source.dtype("lm_head.weight") in ("BF16", "F16")
    found = import_model(source)
    assert not found.account.rounded
    same_tensors(exported(found, tmp_path / "again", source), source)
    held = import_model(source, param_dtype="bfloat16")
    assert held.params["head"]["table_VD"].dtype == jnp.bfloat16
    if dtype == "bfloat16":
        assert not held.account.rounded
        same_tensors(exported(held, tmp_path / "third", source), source)
    else:
        assert "lm_head.weight" in held.account.rounded
        assert "rounded" in str(held.account)


def test_shards_and_their_index(tmp_path):
    theirs = HfDirectory.open(FIXTURES / "olmoe")
    found = imported("olmoe")
    mine = exported(found, tmp_path / "out", theirs, shard_bytes=20_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(
        theirs.read(name).nbytes for name in theirs.names()
    )
    same_tensors(mine, theirs)
    with pytest.raises(ConfigError, match="is not an empty directory"):
        exported(found, tmp_path / "out")


class Watched:
    """A source that knows how many bytes of what it has read are still alive."""

    def __init__(self, source):
        self._source, self.alive, self.most = source, 0, 0

    def __getattr__(self, name):
        return getattr(self._source, name)

    def read(self, name):
        array = self._source.read(name)
        self.alive += array.nbytes
        self.most = max(self.most, self.alive)
        weakref.finalize(array, self._gone, array.nbytes)
        return array

    def _gone(self, size):
        self.alive -= size


def test_memory_is_bounded_by_two_tensors_beside_the_parameters(tmp_path):
    config = ModelConfig(
        vocab_size=64, d_model=64, num_layers=6, ffn_width=512, attention=AttentionConfig(heads=4)
    )
    tree = drawn(config)
    plan = plan_export(config, FAMILIES["llama"])
    largest = 512 * 64 * 4
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    assert total > 20 * largest
    tracemalloc.start()
    export(tmp_path / "out", plan, tree, shard_bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * largest
    watched = Watched(HfDirectory.open(tmp_path / "out"))
    found = import_model(watched)
    assert watched.most <= 2 * largest
    jax.tree.map(np.testing.assert_array_equal, tree_of(found), tree)


def config_of(router, **moe):
    return ModelConfig(
        vocab_size=61,
        d_model=20,
        num_layers=2,
        attention=moe.pop("attention", GQA),
        moe=MoeConfig(
            experts=moe.pop("experts", 6),
            widths=moe.pop("widths", WidthPlan(mean=12)),
            router=router,
            **moe,
        ),
        norm_eps=1e-5,
        max_seq_len=64,
        allow_noncausal=True,
    )


def made_here(router, **moe):
    config = config_of(router, **moe)
    return config, drawn(config)


OLMO = AttentionConfig(heads=2, qk_norm=True, qk_norm_over="projection")
OURS = {
    "mixtral": (TopK(k=2), {}),
    "olmoe": (TopK(k=3, renormalise=False), {"attention": OLMO}),
    "qwen2_moe": (TopK(k=2), {"shared_width": 14, "shared_gate": True}),
    "qwen3_moe": (TopK(k=2), {"attention": dataclasses.replace(GQA, qk_norm=True)}),
    "deepseek": (TopK(k=2), {"shared_width": 24}),
    "deepseek_v3": (SigmoidBias(k=2, groups=3, groups_kept=2), {
        "shared_width": 12,
        "attention": LatentAttentionConfig(heads=2, kv_lora_rank=8, qk_nope_head_dim=6,
                                           qk_rope_head_dim=4, v_head_dim=8, latent_norm_eps=1e-6),
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", OURS)
def test_models_that_were_made_here_find_their_family(tmp_path, name):
    router, moe = OURS[name]
    config, tree = made_here(router, **moe)
    assert choose_family(config).model_type == name
    export(tmp_path / "out", plan_export(config, family_of(name)), tree)
    again = import_model(HfDirectory.open(tmp_path / "out"))
    jax.tree.map(np.testing.assert_array_equal, tree_of(again), tree)


REFUSED = {
    "top-p": (TopP(), {}, r"router.name=top_p: no family .* differs by token"),
    "expert choice": (ExpertChoice(), {}, "experts that choose tokens"),
    "widths": (
        TopK(k=2), {"widths": WidthPlan(strategy="explicit", explicit=(4, 4, 8, 8, 12, 24))},
        r"experts of 4 widths, 4 to 24.*--pad_experts .* 2.40 times the expert parameters",
    ),
    "capacity": (TopK(k=2), {"capacity": CapacityConfig(factor=1.0)}, "bounded"),
    "a shared expert that is no multiple": (TopK(k=2), {"shared_width": 13}, "shared_width"),
    "no gate of one part": (TopK(k=2), {"activation": "relu"}, "activation"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_family_can_say_is_refused_by_its_knob(name):
    router, moe, said = REFUSED[name]
    config = config_of(router, **moe)
    with pytest.raises(ConfigError, match=said):
        choose_family(config)


def test_a_family_names_the_knob_that_it_lacks():
    config = config_of(TopK(k=2, scale=2.0))
    with pytest.raises(ConfigError, match=r"a mixtral checkpoint cannot say all[^$]*scale"):
        write_record(config, family_of("mixtral"))
    with pytest.raises(ConfigError, match="the model has MoE layers"):
        write_record(config, family_of("llama"))
    latent = dataclasses.replace(config, attention=LatentAttentionConfig())
    with pytest.raises(ConfigError, match="is another family's"):
        write_record(latent, family_of("mixtral"))


def test_padding_changes_nothing_but_the_cost(tmp_path, rng):
    widths = WidthPlan(strategy="explicit", explicit=(0, 4, 8))
    config, tree = made_here(TopK(k=2), widths=widths, experts=3)
    padded, wide, cost = pad_experts(config, tree)
    assert set(padded.moe.spec.widths) == {8} and "2.00 times" in cost
    tokens_BS = rng.integers(0, 61, (2, 11)).astype(np.int32)
    before = observe(config, **tree_args(tree), tokens_BS=tokens_BS)
    after = observe(padded, **tree_args(wide), tokens_BS=tokens_BS)
    np.testing.assert_allclose(after.logits_BSV, before.logits_BSV, atol=1e-5)
    export(tmp_path / "out", plan_export(padded, family_of("mixtral")), wide)
    again = import_model(HfDirectory.open(tmp_path / "out"))
    jax.tree.map(np.testing.assert_array_equal, tree_of(again), wide)


def tree_args(tree):
    return {"params": tree["params"], "router_state": tree["router_state"]}


def test_a_config_that_no_longer_holds_is_written_anew(tmp_path):
    """Fine-tuned with another rule: keys that we understand change, the others stay."""
    found, theirs = imported("qwen3_moe"), HfDirectory.open(FIXTURES / "qwen3_moe")
    moe = dataclasses.replace(found.model.moe, router=TopK(k=1, renormalise=True))
    changed = dataclasses.replace(found, model=dataclasses.replace(found.model, moe=moe))
    mine = exported(changed, tmp_path / "out", theirs)
    assert mine.config["num_experts_per_tok"] == 1
    assert mine.config["initializer_range"] == theirs.config["initializer_range"]
    assert read_model(mine)[1].moe.router.k == 1


def test_a_pruned_model_says_its_new_number_of_experts_once():
    """transformers writes `num_local_experts` for Qwen, and we `num_experts`."""
    found, theirs = imported("qwen3_moe"), HfDirectory.open(FIXTURES / "qwen3_moe")
    assert theirs.config["num_local_experts"] == 7
    moe = dataclasses.replace(found.model.moe, experts=4)
    fewer = dataclasses.replace(found.model, moe=moe)
    record = plan_export(fewer, found.family, original=theirs.config).record
    assert record["num_experts"] == 4 and "num_local_experts" not in record
    # A key that contradicts the model and that nobody updates: the config is written without.
    odd = plan_export(fewer, found.family, original=theirs.config | {"attention_bias": True}).record
    assert odd["attention_bias"] is False
