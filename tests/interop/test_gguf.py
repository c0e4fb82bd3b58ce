"""GGUF: the five kinds against slow oracles, hostile files, and a Llama seen as a directory."""

import struct

import numpy as np
import pytest
import tokenizers
from gguf_files import KINDS, encode, gguf
from parity import FIXTURES, imported

from moejax.config import ConfigError
from moejax.interop import GgufLlama, HfDirectory, import_model
from moejax.interop.gguf import GgufFile

NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "model.embed_tokens": "token_embd", "model.norm": "output_norm",
    "lm_head": "output",
}  # fmt: skip
META = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 64,
    "llama.embedding_length": 20,
    "llama.feed_forward_length": 28,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.key_length": 6,
    "llama.attention.layer_norm_rms_epsilon": 1e-6,
    "llama.rope.freq_base": 5000.0,
}
ALPHABET = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
TOKENS = ["<|end|>", *ALPHABET, "th", "the"]
TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3] + [1] * (len(TOKENS) - 1),
    "tokenizer.ggml.merges": ["t h", "th e"],
    "tokenizer.ggml.eos_token_id": 0,
    "tokenizer.ggml.padding_token_id": 0,
    "tokenizer.chat_template": "{{ x }}",
}


def test_every_kind_means_what_its_blocks_say(tmp_path, rng):
    tensors, meant = {}, {}
    for kind in KINDS:
        x = rng.normal(size=(3, 2, 64)).astype(np.float32)
        raw, meant[kind] = encode(kind, x)
        tensors[f"x.{kind}"] = (kind, x.shape, raw)
        assert np.abs(meant[kind] - x).max() < (0.5 if kind.startswith("Q4") else 0.02)
    (tmp_path / "f.gguf").write_bytes(gguf({"general.alignment": 64}, tensors, 2, alignment=64))
    file = GgufFile(tmp_path / "f.gguf")
    assert file.metadata == {"general.alignment": 64}
    for kind in KINDS:
        got = file.read(f"x.{kind}")
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, meant[kind], atol=1e-6, err_msg=kind)
    with pytest.raises(ConfigError, match="no tensor 'y'"):
        file.read("y")


ONE = {"x": ("Q8_0", (32,), bytes(34))}
WHOLE = gguf({"a": 1}, ONE)
HOSTILE = {
    "magic": (b"GGML" + WHOLE[4:], "does not begin with 'GGUF'"),
    "version": (b"GGUF" + struct.pack("<I", 1) + WHOLE[8:], "GGUF version 1"),
    "tensor count": (WHOLE[:8] + struct.pack("<Q", 1 << 60) + WHOLE[16:], "tensors, more than"),
    "key count": (WHOLE[:16] + struct.pack("<Q", 1 << 60) + WHOLE[24:], "metadata keys, more"),
    "string length": (WHOLE[:24] + struct.pack("<Q", 1 << 60) + WHOLE[32:], "bytes in a string"),
    "end": (WHOLE[:-31], "tensor 'x' ends at byte"),
    "header": (WHOLE[:30], "cut short"),
    "kind": (gguf({}, {"evil\n": (14, (32,), bytes(8))}), r"tensor 'evil\\n' is of kind 14"),
    "rows": (gguf({}, {"x": ("Q8_0", (2, 16), bytes(34))}), "no whole blocks of 32"),
    "axes": (gguf({}, {"x": ("F32", (1,) * 9, bytes(4))}), "'x' has 9 axes"),
    "a huge axis": (gguf({}, {"x": ("F32", (1 << 50,), b"")}), "numbers along an axis"),
    "huge axes": (gguf({}, {"x": ("F32", (1 << 39,) * 8, b"")}), "'x' ends at byte"),
    "alignment": (gguf({"general.alignment": 0}, ONE), "is no alignment"),
    "value kind": (WHOLE[:24] + b"\x01" + bytes(7) + b"a" + struct.pack("<I", 77), "kind 77"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused(tmp_path, what):
    content, said = HOSTILE[what]
    (tmp_path / "f.gguf").write_bytes(content)
    with pytest.raises(ConfigError, match=said) as error:
        GgufFile(tmp_path / "f.gguf")
    assert "\n" not in str(error.value)


def neighbours(x, heads):
    """Rows in llama.cpp's order, head by head: 0, d/2, 1, d/2 + 1, ..."""
    out = []
    for head in np.split(x, heads):
        half = len(head) // 2
        out += [head[i // 2 + half * (i % 2)] for i in range(len(head))]
    return np.stack(out)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    source = HfDirectory.open(FIXTURES / "llama")
    tensors = {}
    for name in source.names():
        x = source.read(name)
        if "q_proj" in name or "k_proj" in name:
            x = neighbours(x, 4 if "q_proj" in name else 2)
        stem = name.removesuffix(".weight").removeprefix("model.layers.")
        number, _, rest = stem.partition(".")
        ours = f"blk.{number}.{NAMES[rest]}" if rest in NAMES else NAMES[stem]
        tensors[f"{ours}.weight"] = ("F32", x.shape, x.tobytes())
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    path.write_bytes(gguf(META | TOKENIZER, tensors))
    return path, tensors


def test_a_llama_is_the_same_model_as_its_directory(llama):
    got, want = import_model(GgufLlama(llama[0])), imported("llama")
    assert got.model == want.model and got.account == want.account
    for name in ("q_DHd", "k_DGd", "v_DGd", "o_HdD"):
        np.testing.assert_array_equal(
            got.params["segments"]["0"]["0"]["attention"][name],
            want.params["segments"]["0"]["0"]["attention"][name],
        )
    np.testing.assert_array_equal(got.params["head"]["table_VD"], want.params["head"]["table_VD"])


def test_its_tokenizer_comes_with_it(llama):
    files = GgufLlama(llama[0]).carried()
    made = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    text = "the 12 thés\n"
    ids = made.encode(text).ids
    assert made.decode(ids) == text
    assert [TOKENS[i] for i in ids[:4]] == ["the", "Ġ", "1", "2"]
    assert b'"eos_token": "<|end|>"' in files["tokenizer_config.json"]
    assert b"{{ x }}" in files["tokenizer_config.json"]


@pytest.mark.parametrize(
    "changes, extra, said",
    [
        ({"general.architecture": "gpt2"}, {}, "general.architecture='gpt2'"),
        ({"llama.block_count": "two"}, {}, "llama.block_count='two' is no number"),
        ({"llama.expert_count": 8}, {}, "llama.expert_count=8 is not read"),
        ({"llama.rope.dimension_count": 4}, {}, "only whole heads rotate"),
        ({"llama.block_count": 3}, {}, "9 missing"),
        ({"llama.attention.head_count": 5}, {}, "kv_heads|does not divide"),
        ({}, {"blk.0.odd.weight": ("F32", (1,), bytes(4))}, "'blk.0.odd.weight' is none of"),
        ({}, {"blk.00.attn_q.weight": ("F32", (1,), bytes(4))}, "'blk.00.attn_q.weight' is none"),
    ],
)
def test_metadata_that_contradict_the_tensors_are_refused(llama, tmp_path, changes, extra, said):
    path = tmp_path / "f.gguf"
    path.write_bytes(gguf(META | changes, llama[1] | extra))
    with pytest.raises(ConfigError, match=said):
        import_model(GgufLlama(path))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"tokenizer.ggml.model": "llama"}, "its tokenizer is 'llama'"),
        ({"tokenizer.ggml.pre": "odd"}, "pieces 'odd'"),
        ({"tokenizer.ggml.merges": ["zz y"]}, "do not fit"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "a token twice"),
        ({"tokenizer.ggml.tokens": 7}, "is no list of strings"),
        ({"tokenizer.ggml.token_type": 7}, "token_type is no list of 259 kinds"),
    ],
)
def test_tokenizers_that_are_not_read_are_refused(llama, tmp_path, changes, said):
    path = tmp_path / "f.gguf"
    path.write_bytes(gguf(META | TOKENIZER | changes, llama[1]))
    with pytest.raises(ConfigError, match=said):
        GgufLlama(path).carried()
