"""Write tests/interop/fixtures: tiny random models of every family, and what transformers says.

usage (needs the extra `hf` and torch; see docs/interop.md):
  python -m tools.make_fixtures [DIRECTORY]

A fixture is a directory as `save_pretrained` writes it and `expected.npz`: tokens, logits, router
logits and chosen experts of each MoE layer, the loss and its gradients by name, and tokens that
were generated greedily; all float32 on a CPU. No two sizes of a model are the same, so that a
transposed matrix cannot pass for another. Versions are in `versions.json`.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "interop" / "fixtures"
VOCAB, BATCH, LENGTH, PROMPT = 61, 2, 11, 4

COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": None,
}
GQA = COMMON | {"num_key_value_heads": 2, "head_dim": 6}
BASE = {"rope_type": "default", "rope_theta": 5e3}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
        "beta_fast": 4.0, "beta_slow": 1.0}  # fmt: skip
LATENT = COMMON | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 14,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 12,
    "n_shared_experts": 2,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GQA | {"rope_parameters": BASE}),
    "llama3_tied": ("Llama", GQA | {
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0,
                            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                            "original_max_position_embeddings": 16},
    }),
    "mistral": ("Mistral", GQA | {"sliding_window": None, "rope_parameters": BASE}),
    "qwen2_yarn": ("Qwen2", COMMON | {
        "num_key_value_heads": 1, "hidden_size": 24, "head_dim": 8,
        "rope_parameters": {"rope_theta": 1e4, **YARN},
    }),
    "qwen3": ("Qwen3", GQA | {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "mixtral": ("Mixtral", GQA | {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "olmoe": ("Olmoe", COMMON | {
        "hidden_size": 24, "num_key_value_heads": 2, "num_experts": 7, "num_experts_per_tok": 3,
        "clip_qkv": 0.9,
    }),
    "qwen2_moe_fused": ("Qwen2Moe", COMMON | {
        "hidden_size": 24, "num_key_value_heads": 2, "num_experts": 5, "num_experts_per_tok": 2,
        "moe_intermediate_size": 10, "head_dim": 8, "shared_expert_intermediate_size": 18,
        "mlp_only_layers": [1],
    }),
    "qwen3_moe": ("Qwen3Moe", GQA | {
        "num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 12,
        "norm_topk_prob": True, "num_hidden_layers": 4, "decoder_sparse_step": 2,
    }),
    "deepseek_moe": ("Deepseek", GQA | {
        "first_k_dense_replace": 1, "moe_intermediate_size": 12,
        "n_routed_experts": 5, "n_shared_experts": 2, "num_experts_per_tok": 2,
    }),
    "deepseek_v2_lite": ("DeepseekV2", LATENT | {
        "q_lora_rank": None, "n_routed_experts": 7, "num_experts_per_tok": 3, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 1e4, "mscale": 0.707, "mscale_all_dim": 0.707, **YARN},
    }),
    "deepseek_v2": ("DeepseekV2", LATENT | {
        "q_lora_rank": 10, "n_routed_experts": 6, "num_experts_per_tok": 2, "n_group": 3,
        "topk_group": 2, "topk_method": "group_limited_greedy", "routed_scaling_factor": 1.5,
    }),
    "deepseek_v3": ("DeepseekV3", LATENT | {
        "q_lora_rank": 10, "n_routed_experts": 6, "num_experts_per_tok": 2, "n_group": 3,
        "topk_group": 2, "n_shared_experts": 1, "num_nextn_predict_layers": 0,
        "rope_parameters": {"rope_theta": 1e4, "mscale": 1.0, "mscale_all_dim": 1.0, **YARN},
    }),
}  # fmt: skip
"""Name of a fixture to the class prefix in transformers and its config. "Deepseek" (DeepSeekMoE
16B) is remote code that is not fetched: it is a Llama whose later FFNs are transformers'
DeepSeek-V2 layer (softmax, greedy, factor 1), which is the same arithmetic."""


def build(name: str) -> Any:
    """The model of a fixture with its random weights, in evaluation mode."""
    torch.manual_seed(sum(name.encode()))
    prefix, knobs = CASES[name]
    if prefix == "Deepseek":
        model = _deepseek_moe(knobs)
    else:
        config = getattr(transformers, f"{prefix}Config")(**knobs)
        # Not the grouped product: it wants rows of whole 16 bytes.
        model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation="eager", experts_implementation="eager"
        )
    _randomise(model)
    return model.float().eval()


def _deepseek_moe(knobs: dict[str, Any]) -> Any:
    llama = {key: value for key, value in knobs.items() if key in GQA}
    config = transformers.LlamaConfig(**llama)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    layer = transformers.DeepseekV2Config(
        **{key: value for key, value in knobs.items() if key != "head_dim"}
    )
    layer._experts_implementation = "eager"
    for block in model.model.layers[knobs["first_k_dense_replace"] :]:
        block.mlp = DeepseekV2Moe(layer)
    return model


@torch.no_grad()
def _randomise(model: Any) -> None:
    """Weights large enough that every part matters, and routers that are sure of their choice."""
    tensors = dict(model.named_parameters()) | {
        name: buffer for name, buffer in model.named_buffers() if name.endswith("correction_bias")
    }
    for name in sorted(tensors):
        tensor = tensors[name]
        noise = torch.randn(tensor.shape, dtype=torch.float64).to(tensor.dtype)
        if name.endswith(("bias", "norm.weight")):
            tensor.copy_(0.2 * noise + (0.0 if name.endswith("bias") else 1.0))
        elif name.endswith("mlp.gate.weight"):
            tensor.copy_(0.6 * noise)
        elif "embed" in name:
            tensor.copy_(noise)
        else:
            tensor.copy_(1.5 * noise / tensor.shape[-1] ** 0.5)


def save(model: Any, name: str, target: Path) -> None:
    """Writes the checkpoint of a fixture."""
    if CASES[name][0] != "Deepseek":
        model.save_pretrained(target, save_original_format=not name.endswith("_fused"))
        (target / "generation_config.json").unlink(missing_ok=True)
        return
    target.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for key, value in model.state_dict().items():
        if key.endswith("experts.gate_up_proj"):
            for expert, both in enumerate(value):
                at = key.removesuffix("gate_up_proj") + str(expert)
                gate, up = both.chunk(2, dim=0)
                tensors[f"{at}.gate_proj.weight"] = gate.clone()
                tensors[f"{at}.up_proj.weight"] = up.clone()
        elif key.endswith("experts.down_proj"):
            for expert, down in enumerate(value):
                at = key.removesuffix("down_proj") + str(expert)
                tensors[f"{at}.down_proj.weight"] = down.clone()
        else:
            tensors[key] = value
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    record = CASES[name][1] | {
        "model_type": "deepseek", "architectures": ["DeepseekForCausalLM"], "hidden_act": "silu",
        "norm_topk_prob": False, "scoring_func": "softmax", "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "moe_layer_freq": 1, "torch_dtype": "float32",
        "tie_word_embeddings": False,
    }  # fmt: skip
    text = json.dumps(record, indent=2, sort_keys=True) + "\n"
    (target / "config.json").write_text(text)


def observe(model: Any, name: str) -> dict[str, np.ndarray]:
    """What a model computes: the arrays of `expected.npz`."""
    rng = np.random.RandomState(sum(name.encode()))  # its stream is fixed for ever
    tokens = torch.tensor(rng.randint(0, VOCAB, (BATCH, LENGTH)))
    found: dict[str, np.ndarray] = {"tokens_BS": tokens.numpy().astype(np.int32)}
    routers: dict[int, Any] = {}
    handles = []
    for index, layer in enumerate(model.model.layers):
        if hasattr(layer.mlp, "gate"):
            handles.append(
                layer.mlp.gate.register_forward_hook(
                    lambda _, __, out, index=index: routers.__setitem__(index, out)
                )
            )
    logits = model(tokens, use_cache=False).logits
    for handle in handles:
        handle.remove()
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, VOCAB), tokens[:, 1:].reshape(-1)
    )
    loss.backward()
    found["logits_BSV"] = logits.detach().numpy()
    found["loss"] = loss.detach().numpy()
    for index, (router_logits, weights, experts) in routers.items():
        order = experts.argsort(-1)
        found[f"router_logits_{index}_TE"] = router_logits.detach().numpy()
        found[f"expert_{index}_TK"] = experts.gather(-1, order).numpy().astype(np.int32)
        found[f"weight_{index}_TK"] = weights.gather(-1, order).detach().numpy()
    for key, parameter in model.named_parameters():
        found[f"grad:{key}"] = parameter.grad.numpy()
    model.zero_grad()
    found["generated"] = generate(model, tokens[:1, :PROMPT], LENGTH)
    return found


@torch.no_grad()
def generate(model: Any, prompt: Any, length: int) -> np.ndarray:
    """int32 `[length]`: a prompt `[1, n]` continued greedily by transformers' own loop."""
    ids = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=length - prompt.shape[1],
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return ids[0].numpy().astype(np.int32)


def logits_of(directory: Path, tokens: np.ndarray) -> np.ndarray:
    """float32 `[B, S, V]`: a checkpoint directory opened by transformers, all tensors used.

    Raises:
      ValueError: transformers finds tensors missing, unexpected or of other shapes.
    """
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        directory,
        output_loading_info=True,
        attn_implementation="eager",
        experts_implementation="eager",
        dtype=torch.float32,
    )
    wrong = {key: value for key, value in info.items() if value and key != "error_msgs"}
    if wrong:
        raise ValueError(f"{directory}: {wrong}")
    with torch.no_grad():
        return model.eval()(torch.tensor(np.asarray(tokens, np.int64))).logits.numpy()


def make(name: str, target: Path) -> None:
    """Writes one fixture."""
    model = build(name)
    save(model, name, target)
    np.savez_compressed(target / "expected.npz", **observe(model, name))


def main(argv: list[str]) -> None:
    """Writes all fixtures anew."""
    transformers.logging.set_verbosity_error()
    root = Path(argv[0]) if argv else FIXTURES
    root.mkdir(parents=True, exist_ok=True)
    for name in CASES:
        with tempfile.TemporaryDirectory() as temporary:
            made = Path(temporary) / name
            make(name, made)
            shutil.rmtree(root / name, ignore_errors=True)
            shutil.move(made, root / name)
        print(f"{root / name}", flush=True)
    versions = {
        "numpy": np.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    (root / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
