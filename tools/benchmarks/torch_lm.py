"""The same language model in eager torch: RoPE, RMSNorm, SwiGLU or a MoE block of transformers.

Weights are copied from ours and the first losses compared, so that nothing but speed differs.
Attention is torch's fused one, AdamW the fused one, as somebody would write it who wants speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from moejax.train import Experiment
from tools.benchmarks.peers_torch import hf_moe, prepare

torch = prepare()
F = torch.nn.functional


class Block(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Attention and FFN, each behind its norm."""

    def __init__(self, experiment: Experiment, ffn: Any) -> None:
        super().__init__()
        model = experiment.model
        self.attention = model.attention.resolve(model.d_model)  # type: ignore[attr-defined]
        self.eps, self.width = model.norm_eps, model.d_model
        inner = self.attention.heads * self.attention.head_dim
        self.q, self.k, self.v = (
            torch.nn.Linear(model.d_model, inner, bias=False) for _ in range(3)
        )
        self.o = torch.nn.Linear(inner, model.d_model, bias=False)
        self.attention_norm = torch.nn.Parameter(torch.ones(model.d_model))
        self.ffn_norm = torch.nn.Parameter(torch.ones(model.d_model))
        self.ffn = ffn

    def forward(self, x: Any, cos: Any, sin: Any) -> tuple[Any, Any]:
        """Hidden states, and the router's logits and choice (None: dense)."""
        batch, length, _ = x.shape
        h = F.rms_norm(x, (self.width,), self.attention_norm, self.eps)
        q, k, v = (
            layer(h).view(batch, length, self.attention.heads, -1).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(batch, length, -1))
        h = F.rms_norm(x, (self.width,), self.ffn_norm, self.eps)
        if not hasattr(self.ffn, "experts"):
            return x + self.ffn(h), None
        flat = h.reshape(-1, self.width)
        logits, weights, chosen = self.ffn.gate(flat)
        return x + self.ffn.experts(flat, chosen, weights).view(x.shape), (logits, chosen)


def rotate(x: Any, cos: Any, sin: Any) -> Any:
    """Pairs `(x[i], x[i + d/2])` of each head by its angle."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class DenseFFN(torch.nn.Module):  # type: ignore[misc, name-defined]
    """SwiGLU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = (torch.nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = torch.nn.Linear(hidden, width, bias=False)

    def forward(self, x: Any) -> Any:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class TorchLM(torch.nn.Module):  # type: ignore[misc, name-defined]
    """The model of an experiment without its weights; `loss` is the training loss."""

    def __init__(self, experiment: Experiment) -> None:
        super().__init__()
        model = experiment.model
        self.experiment = experiment
        self.embed = torch.nn.Embedding(model.vocab_size, model.d_model)
        self.blocks = torch.nn.ModuleList(
            Block(experiment, _ffn(experiment)) for _ in range(model.num_layers)
        )
        self.final_norm = torch.nn.Parameter(torch.ones(model.d_model))
        self.head = torch.nn.Linear(model.d_model, model.vocab_size, bias=False)
        if model.tied_embeddings:
            self.head.weight = self.embed.weight
        self.angles = _angles(experiment)

    def loss(self, tokens: Any, targets: Any) -> Any:
        """Mean cross-entropy, and the balance loss of MoE layers as ours has it."""
        model = self.experiment.model
        x = self.embed(tokens)
        routed = []
        for block in self.blocks:
            x, routing = block(x, *self.angles)
            if routing is not None:
                routed.append(balance(*routing))
        x = F.rms_norm(x, (model.d_model,), self.final_norm, model.norm_eps)
        logits = self.head(x).view(-1, model.vocab_size)
        total = F.cross_entropy(logits, targets.reshape(-1))
        if routed:
            total = total + model.moe.losses.load_balance.coefficient * sum(routed) / len(routed)
        return total


def balance(logits: Any, chosen: Any) -> Any:
    """`N/K sum f Q` (moejax.routing.losses, convention `deepseek`)."""
    experts, k = logits.shape[-1], chosen.shape[-1]
    share = torch.bincount(chosen.reshape(-1), minlength=experts).float() / chosen.shape[0]
    return experts / k * (share * logits.softmax(-1).mean(0)).sum()


def train_step(
    experiment: Experiment, weights: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray]
) -> Callable[[], float]:
    """A function that does one optimiser step and returns the loss before it."""
    model = TorchLM(experiment)
    state = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
    model.load_state_dict(state)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    knobs = experiment.optimizer
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": knobs.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=knobs.lr,
        betas=(knobs.b1, knobs.b2),
        eps=knobs.eps,
        fused=True,
    )
    tokens, targets = (
        torch.from_numpy(np.array(batch[name], np.int64)) for name in ("tokens", "targets")
    )

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model.loss(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), knobs.clip_norm)
        optimizer.step()
        return float(loss.detach())

    return step


def _ffn(experiment: Experiment) -> Any:
    model = experiment.model
    if model.moe is None:
        return DenseFFN(model.d_model, model.ffn_width)
    spec = model.moe.spec
    shape = (spec.num_experts, spec.unit, model.d_model)
    arrays = {name: np.zeros(shape, np.float32) for name in ("gate", "up", "down")}
    arrays["router"] = np.zeros((model.d_model, spec.num_experts), np.float32)
    return hf_moe("mixtral", arrays, model.moe.router.slots(spec.num_experts), "grouped_mm")


def _angles(experiment: Experiment) -> tuple[Any, Any]:
    """cos and sin `[S, d/2]`."""
    attention = experiment.model.attention.resolve(  # type: ignore[attr-defined]
        experiment.model.d_model
    )
    half = attention.head_dim // 2
    frequency = attention.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)
    angle = torch.arange(experiment.data.seq_len, dtype=torch.float32)[:, None] * frequency
    return angle.cos(), angle.sin()
