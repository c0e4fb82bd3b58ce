"""A Llama in a GGUF file, seen as a Hugging Face directory: config, tensor names, tokenizer.

llama.cpp rotates neighbours, `(x[2i], x[2i + 1])`, and stores the rows of queries and keys in that
order; here they are put back into halves.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from moejax.config import ConfigError
from moejax.interop.gguf import GgufFile
from moejax.interop.safetensors import shown

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = re.compile(r"blk\.(0|[1-9][0-9]{0,4})\.(\w+)\.weight")
"""One spelling of each number: two names must not become one."""

CONTROL, BYTE = 3, 6
"""Kinds of tokens (`tokenizer.ggml.token_type`): control tokens are special."""

PIECES: dict[str, list[Any]] = {
    "smollm": [pre_tokenizers.Digits(individual_digits=True),
               pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
}  # fmt: skip
"""How text is cut before merging, by `tokenizer.ggml.pre`."""


class GgufLlama:
    """A `Source` (`moejax.interop.source`). Quantised tensors are read as float32.

    Raises:
      ConfigError: not a Llama's file, or its metadata contradict themselves.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.where = Path(path)
        self._file = GgufFile(path)
        meta = self._file.metadata
        architecture = meta.get("general.architecture")
        if architecture != "llama":
            raise ConfigError(
                f"{path}: general.architecture={shown(architecture)}; read is 'llama'"
            )
        self._names = {_hf_name(name, self.where): name for name in self._file.tensors}
        self.config = _config(meta, self._file, self.where)

    def names(self) -> Iterable[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return self._file.tensors[self._names[name]].shape

    def dtype(self, name: str) -> str:
        del name
        return "F32"

    def read(self, name: str) -> np.ndarray:
        array = self._file.read(self._names[name])
        heads = self.config["num_attention_heads"]
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = heads if "q_proj" in name else self.config["num_key_value_heads"]
            if array.ndim != 2 or array.shape[0] % (2 * heads):
                raise ConfigError(
                    f"{self.where}: tensor {shown(name)} of shape {list(array.shape)} does not "
                    f"divide into {heads} heads"
                )
            pairs = array.reshape(heads, array.shape[0] // heads // 2, 2, array.shape[1])
            array = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(array.shape)
        return array

    def carried(self) -> dict[str, bytes]:
        return tokenizer_files(self._file.metadata, self.where)


def _hf_name(name: str, where: Path) -> str:
    head, _, _ = name.partition(".")
    if head in _WHOLE and name == f"{head}.weight":
        return f"{_WHOLE[head]}.weight"
    found = _BLOCK.fullmatch(name)
    if found and found[2] in _LAYER:
        return f"model.layers.{int(found[1])}.{_LAYER[found[2]]}.weight"
    raise ConfigError(f"{where}: tensor {shown(name)} is none of a Llama's")


def _config(meta: dict[str, Any], file: GgufFile, where: Path) -> dict[str, Any]:
    def get(key: str, default: Any = None) -> Any:
        value = meta.get(f"llama.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{where}: metadata llama.{key}={shown(value)} is no number")
        return value

    for key in ("llama.rope.scaling.type", "llama.expert_count"):
        if meta.get(key) not in (None, 0, "none"):
            raise ConfigError(f"{where}: metadata {key}={shown(meta[key])} is not read")
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise ConfigError(f"{where}: has no tensor 'token_embd.weight' of two axes")
    heads, width = get("attention.head_count"), get("embedding_length")
    head_dim = get("attention.key_length", width // heads if heads else 0)
    if get("rope.dimension_count", head_dim) != head_dim:
        raise ConfigError(f"{where}: metadata llama.rope.dimension_count: only whole heads rotate")
    # The eps is a float32 in the file: 1e-5 is meant, not 9.99999974e-06.
    eps = float(np.format_float_positional(np.float32(get("attention.layer_norm_rms_epsilon"))))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "bos_token_id": meta.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": meta.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": meta.get("tokenizer.ggml.padding_token_id"),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": get("feed_forward_length"),
        "max_position_embeddings": get("context_length"),
        "num_attention_heads": heads,
        "num_hidden_layers": get("block_count"),
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "rms_norm_eps": eps,
        "rope_theta": float(get("rope.freq_base", 10000.0)),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "vocab_size": table.shape[0],
    }


def tokenizer_files(meta: dict[str, Any], where: Path) -> dict[str, bytes]:
    """`tokenizer.json` and `tokenizer_config.json` of a byte-level BPE in a GGUF's metadata.

    Raises:
      ConfigError: another kind of tokenizer, or tokens and merges that do not fit.
    """

    def strings(key: str) -> list[str]:
        value = meta.get(f"tokenizer.ggml.{key}", [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{where}: metadata tokenizer.ggml.{key} is no list of strings")
        return value

    model, cut = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre", "gpt-2")
    if model != "gpt2" or cut not in PIECES:
        raise ConfigError(
            f"{where}: its tokenizer is {shown(model)} with pieces {shown(cut)}; read is 'gpt2' "
            f"with {', '.join(PIECES)}"
        )
    tokens, kinds = strings("tokens"), meta.get("tokenizer.ggml.token_type", [])
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ConfigError(f"{where}: its tokenizer has a token twice")
    if not isinstance(kinds, list) or len(kinds) not in (0, len(tokens)):
        raise ConfigError(
            f"{where}: metadata tokenizer.ggml.token_type is no list of {len(tokens)} kinds"
        )
    merges = [tuple(merge.split(" ", 1)) for merge in strings("merges")]
    try:
        made = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))  # type: ignore[arg-type]
    except Exception as error:  # tokenizers raises bare Exception
        raise ConfigError(f"{where}: tokens and merges do not fit ({error})") from error
    made.pre_tokenizer = pre_tokenizers.Sequence(PIECES[cut])
    made.decoder = decoders.ByteLevel()
    if kinds:
        special = zip(tokens, kinds, strict=True)
        made.add_special_tokens([token for token, kind in special if kind == CONTROL])

    def named(key: str) -> str | None:
        index = meta.get(f"tokenizer.ggml.{key}_token_id")
        return tokens[index] if isinstance(index, int) and 0 <= index < len(tokens) else None

    settings = {
        "add_bos_token": bool(meta.get("tokenizer.ggml.add_bos_token", False)),
        "bos_token": named("bos"),
        "eos_token": named("eos"),
        "pad_token": named("padding"),
        "unk_token": named("unknown"),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "chat_template": meta.get("tokenizer.chat_template"),
    }
    kept = {key: value for key, value in settings.items() if value is not None}
    return {
        "tokenizer.json": made.to_str(pretty=True).encode(),
        "tokenizer_config.json": (json.dumps(kept, indent=2) + "\n").encode(),
    }
