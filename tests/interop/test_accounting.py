"""Strict accounting: every tensor and every key of a config is understood, or the import fails."""

import ast
import json
import shutil

import numpy as np
import pytest
from parity import FIXTURES, imported

from moejax.config import ConfigError
from moejax.interop import HfDirectory, import_model, read_model
from moejax.interop.safetensors import NAMES, SafetensorsFile, write_safetensors

UP = "model.layers.1.mlp.up_proj.weight"


def tensors_of(name):
    file = SafetensorsFile(FIXTURES / name / "model.safetensors")
    return {key: file.read(key) for key in file.tensors}


@pytest.fixture
def changed(tmp_path):
    """A fixture with some tensors replaced (None: left out) and some keys of its config."""

    def make(name, tensors=None, **config):
        root = tmp_path / "changed"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        held = tensors_of(name) | (tensors or {})
        held = {key: value for key, value in held.items() if value is not None}
        shapes = {key: (value.shape, NAMES[value.dtype]) for key, value in held.items()}
        write_safetensors(root / "model.safetensors", shapes, held.items(), {})
        record = json.loads((FIXTURES / name / "config.json").read_text()) | config
        (root / "config.json").write_text(json.dumps(record))
        return HfDirectory.open(root)

    return make


def refusal(source, **options):
    with pytest.raises(ConfigError) as error:
        import_model(source, **options)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_the_books_of_a_whole_import():
    found = imported("mixtral")
    assert str(found.account) == f"0 missing, 0 unexpected, {len(tensors_of('mixtral'))} mapped"


def test_missing_renamed_and_further_tensors_are_named(changed):
    said = refusal(changed("llama", {UP: None}))
    assert f"1 missing, 0 unexpected, 20 would map; missing: {UP!r}" in said
    other = UP.replace("up_proj", "upward")
    said = refusal(changed("llama", {UP: None, other: np.ones((28, 20), np.float32)}))
    assert f"1 missing, 1 unexpected, 20 would map; missing: {UP!r}; unexpected: {other!r}" in said
    many = {f"model.layers.{9 + i}.x\n": np.ones(1, np.float32) for i in range(9)}
    said = refusal(changed("llama", many))
    assert "0 missing, 9 unexpected" in said and "and 4 more" in said and "--skip" in said


def test_tensors_may_be_left_out_by_name_and_only_by_name(changed):
    further = {"model.layers.2.embed.weight": np.ones(3, np.float32)}
    found = import_model(changed("llama", further), skip=["model.layers.2.*"])
    assert found.account.skipped == ("model.layers.2.embed.weight",)
    assert str(found.account).endswith("1 skipped by --skip")
    assert "no such tensor" in refusal(changed("llama"), skip=["model.layers.2.*"])
    assert "1 missing" in refusal(changed("llama"), skip=[UP])


@pytest.mark.parametrize(
    "array, said",
    [
        (np.ones((20, 28), np.float32), "has shape [20, 28], but config.json makes it [28, 20]"),
        (np.ones((28, 20), np.int32), "is I32; a weight is one of F32, F16, BF16"),
        (np.ones((28, 20), np.float64), "is F64"),
    ],
)
def test_a_tensor_of_another_shape_or_dtype_is_refused_by_name(changed, array, said):
    message = refusal(changed("llama", {UP: array}))
    assert f"tensor {UP!r}" in message and said in message


def test_experts_of_a_layer_come_in_either_layout_but_whole(changed):
    gone = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    assert repr(gone) in refusal(changed("mixtral", {gone: None}))
    fused = "model.layers.0.mlp.experts.gate_up_proj"
    swapped = tensors_of("qwen2_moe_fused")[fused].swapaxes(1, 2)
    assert repr(fused) in refusal(changed("qwen2_moe_fused", {fused: swapped.copy()}))
    # Both layouts at once: the other one is unexpected, whichever is meant.
    both = np.ones((5, 56, 20), np.float32)
    assert "unexpected" in refusal(changed("mixtral", {fused: both}))


def test_a_tied_head_may_be_stored_again_if_it_is_the_same(changed):
    table = tensors_of("qwen3")["model.embed_tokens.weight"]
    found = import_model(changed("qwen3", {"lm_head.weight": table}))
    assert found.account.duplicates == ("lm_head.weight",)
    said = refusal(changed("qwen3", {"lm_head.weight": table + 1}))
    assert "differs from 'model.embed_tokens.weight'" in said


CONFIGS = [
    ("llama", {"model_type": "lama"}, "model_type='lama': unknown family; did you mean 'llama'"),
    ("llama", {"model_type": None}, "unknown family"),
    ("llama", {"logit_scale": 0.5}, "logit_scale: not understood.*--ignore=logit_scale"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantised weights are not read"),
    ("llama", {"attention_bias": True}, "attention_bias=True"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ("llama", {"hidden_size": "20"}, "hidden_size='20' is no whole number"),
    ("llama", {"num_hidden_layers": 1 << 20}, "num_hidden_layers=1048576 is no whole number"),
    ("llama", {"vocab_size": 1 << 30}, "'model.embed_tokens.weight' has shape .61, 20."),
    ("mixtral", {"num_local_experts": 9000}, "missing.*and [0-9]+ more"),
    ("llama", {"rms_norm_eps": "x"}, "rms_norm_eps='x' is no finite number"),
    ("llama", {"num_key_value_heads": 3}, "kv_heads"),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_type='linear'"),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "odd": 1}}, "odd"),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ("qwen2_yarn", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0,
                                        "attention_factor": 2.0}}, "attention_factor"),
    ("qwen2_yarn", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0,
                                        "mscale_all_dim": 1.0}}, "latent attention"),
    ("mistral", {"sliding_window": 16}, "import it with --max_seq_len=16"),
    ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ("mixtral", {"num_local_experts": 6}, r"6 missing.*experts\.5\.w1"),
    ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob=True"),
    ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method"),
    ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func='softmax'"),
    ("deepseek_v3", {"n_group": 4}, "groups=4: does not divide 6 experts"),
]  # fmt: skip


@pytest.mark.parametrize(
    "name, keys, said", CONFIGS, ids=[f"{n}-{next(iter(k))}" for n, k, _ in CONFIGS]
)
def test_a_config_that_our_models_are_not_is_refused(changed, name, keys, said):
    with pytest.raises(ConfigError, match=said):
        import_model(changed(name, **keys))


def test_keys_may_be_declared_harmless_by_name(changed):
    source = changed("llama", brand_new_key=3)
    assert import_model(source, ignore=["brand_new_key"]).account.mapped == 21
    assert "no key 'typo'" in refusal(changed("llama"), ignore=["typo"])


def test_a_window_is_no_window_for_sequences_that_fit_into_it(changed):
    found = import_model(changed("mistral", sliding_window=16), max_seq_len=16)
    assert found.model.max_seq_len == 16
    assert "nearest valid value 64" in refusal(changed("mistral"), max_seq_len=65)


def test_directories_that_are_none_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="is no directory"):
        HfDirectory.open(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        HfDirectory.open(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cposix\nsystem\n")
    with pytest.raises(ConfigError, match="is a pickle, which is never read"):
        HfDirectory.open(tmp_path)


@pytest.mark.parametrize(
    "places, said",
    [
        ({"a": "../model.safetensors"}, "which is no safetensors file of this directory"),
        ({"a": "model.bin"}, "which is no safetensors file"),
        ({"a": "gone.safetensors"}, "'a' is in 'gone.safetensors', which is missing"),
        ({"a": 5000 * "x" + ".safetensors"}, "which is missing"),
        ({"a": "\0.safetensors"}, "which is missing"),
        ({"nowhere": "model.safetensors"}, "'nowhere' is not in"),
        ({UP: "model.safetensors"}, "which the index does not say"),
        (["a"], "has no weight_map"),
    ],
)
def test_an_index_that_lies_is_refused(changed, places, said):
    root = changed("llama").where
    index = {"metadata": {}, "weight_map": places}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=said):
        HfDirectory.open(root)


def test_an_index_beside_weights_that_it_does_not_name_is_refused(changed):
    root = changed("llama").where
    (root / "model.safetensors").rename(root / "model-00001-of-00001.safetensors")
    shard = SafetensorsFile(root / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(shard.tensors, shard.path.name)}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    assert set(HfDirectory.open(root).names()) == set(shard.tensors)
    shutil.copy(shard.path, root / "model.safetensors")
    with pytest.raises(ConfigError, match="which of the two is the model"):
        HfDirectory.open(root)


def test_a_key_that_is_missing_means_what_transformers_takes_it_for(changed):
    """Bases and windows differ by family; a wrong guess would be silently another model."""
    source = changed("mixtral")
    del source.config["rope_parameters"]
    assert read_model(source)[1].attention.rope_theta == 1e6
    source = changed("llama")
    del source.config["rope_parameters"]
    assert read_model(source)[1].attention.rope_theta == 1e4
    source = changed("mistral", max_position_embeddings=8192)
    assert read_model(source)[1].max_seq_len == 8192  # null: no window
    del source.config["sliding_window"]
    with pytest.raises(ConfigError, match="import it with --max_seq_len=4096"):
        read_model(source)


def test_nothing_that_unpickles_or_reaches_a_network_is_imported():
    root = FIXTURES.parent.parent.parent
    files = [*(root / "moejax" / "interop").rglob("*.py"), root / "tools" / "convert.py"]
    found = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").partition(".")[0])
    assert "numpy" in found and len(files) > 15
    assert not found & {
        "pickle", "torch", "transformers", "safetensors", "huggingface_hub", "requests", "urllib",
        "http", "socket",
    }  # fmt: skip
