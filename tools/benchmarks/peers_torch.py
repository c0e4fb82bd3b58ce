"""Peers in the same process: torch's dense FFN, and the MoE blocks of transformers.

Each is forward and backward of the same layer on the same input with a copy of our weights; who
does not give our output and input gradient is not timed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from moejax.config import ConfigError
from moejax.train.environment import usable_cores
from tools.benchmarks.copies import hf_block

INSTALL = (
    "pip install 'moejax[bench]' (a CPU build of torch: add "
    "--extra-index-url https://download.pytorch.org/whl/cpu)"
)


def require(suite: str) -> None:
    """Raises ConfigError when the extra is not there. Imports nothing."""
    absent = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    if absent:
        raise ConfigError(
            f"--suite={suite}: compares with {' and '.join(absent)}, which the extra `bench` "
            f"brings: {INSTALL}; without peers: --no-peers"
        )


def prepare() -> Any:
    """torch, with as many threads as there are cores."""
    import torch

    torch.set_num_threads(usable_cores())
    return torch


def without_gpu() -> str:
    """Why torch cannot use a GPU here, or ""."""
    return "" if prepare().cuda.is_available() else "torch sees no GPU: is it a CPU build?"


def describe_threads() -> dict[str, Any]:
    """How torch runs here."""
    import torch

    return {"threads": torch.get_num_threads(), "interop_threads": torch.get_num_interop_threads()}


def hf_moe(
    kind: str,
    layer: Mapping[str, np.ndarray],
    k: int,
    implementation: str,
    device: str = "cpu",
    dtype: str = "float32",
) -> Any:
    """A block of `mixtral` (weights renormalised) or `olmoe` (raw probabilities).

    Args:
      kind: see above.
      layer: gate, up, down `[E, F, D]`, router `[D, E]`.
      k: experts per token.
      implementation: `grouped_mm` or `eager`.
      device, dtype: where and in what type it computes, in torch's words.
    """
    torch = prepare()
    from transformers import MixtralConfig, OlmoeConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

    experts, width, d_model = layer["gate"].shape
    sizes = {
        "hidden_size": d_model,
        "intermediate_size": width,
        "num_experts_per_tok": k,
        "experts_implementation": implementation,
    }
    block = (
        MixtralSparseMoeBlock(MixtralConfig(num_local_experts=experts, **sizes))
        if kind == "mixtral"
        else OlmoeSparseMoeBlock(OlmoeConfig(num_experts=experts, norm_topk_prob=False, **sizes))
    )
    arrays = {name: torch.from_numpy(array.copy()) for name, array in hf_block(layer).items()}
    block.load_state_dict(arrays)
    return block.to(device, getattr(torch, dtype)).train()


def dense_ffn(d_model: int, width: int) -> Any:
    """The dense SwiGLU FFN in torch, with weights of its own (speed does not depend on them)."""
    torch = prepare()

    class DenseFFN(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up = (torch.nn.Linear(d_model, width, bias=False) for _ in range(2))
            self.down = torch.nn.Linear(width, d_model, bias=False)

        def forward(self, x: Any) -> Any:
            return self.down(torch.nn.functional.silu(self.gate(x)) * self.up(x))

    return DenseFFN()


def step(module: Any, x_TD: Any, dy_TD: Any) -> Callable[[], tuple[Any, Any]]:
    """Forward and backward of a module: returns a function that gives output and input gradient.

    Where and in what type is the module's choice. Gradients start as None, so that they are
    allocated in every call, as JAX does.
    """
    torch = prepare()
    like = next(module.parameters())
    x_BSD, dy_BSD = (
        torch.from_numpy(np.array(array, np.float32)).to(like)[None] for array in (x_TD, dy_TD)
    )
    x_BSD.requires_grad_()

    def run() -> tuple[Any, Any]:
        x_BSD.grad = None
        module.zero_grad(set_to_none=True)
        y_BSD = module(x_BSD)
        y_BSD.backward(dy_BSD)
        if like.is_cuda:
            torch.cuda.synchronize()
        return y_BSD.detach()[0], x_BSD.grad[0]

    return run
