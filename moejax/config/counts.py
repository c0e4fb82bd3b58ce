"""Analytic parameter and FLOP counts: one set of formulas for plan, trainer and report.

Convention (stated in every run's model.json): a *parameter count* covers the weight matrices of
embeddings, head, attention, FFN and experts; norm scales, biases and routers are listed but left
out of `total`, as in the published counts that the tests hold it to (Huang et al. 373,817,344;
HMoE 417,202,176 / 162,398,208). An untied embedding and the head both count as active.

A *FLOP* count is training FLOPs per token: 2 per multiply-add of every weight matrix in use
(embedding look-up 0, head once) plus attention scores, times 3 for forward and backward; no
recomputation. Attention scores count the causal half: scores and weighted sum over a mean context
of S/2 are `S * H * Dh` multiply-adds per token (MLA: the mean of the widths of keys and values).
The up-projections of a latent count like other matrices. Norms, softmax and activations are left
out.
"""

from __future__ import annotations

import dataclasses

CONVENTION = (
    "parameters: weight matrices incl. embedding and head, without norm scales, biases and "
    "routers; FLOPs: training (3x forward) per token, 2 per multiply-add, embedding look-up 0, "
    "head once, causal half of the attention scores, no recomputation"
)


@dataclasses.dataclass(frozen=True)
class LayerShape:
    """What one transformer layer holds.

    Attributes:
      heads, kv_heads, head_dim: attention geometry; head_dim is the width of a query or key.
      dense_width: hidden width of a dense FFN (0 in an MoE layer).
      widths: hidden width of each routed expert (empty in a dense layer).
      shared_width: hidden width of the shared experts together.
      ffn_matrices: weight matrices of each FFN of the layer: 3 (gate, up, down), or 2 (up, down).
      nominal_active: routed experts per token to plan with.
      router: registered name of the router, or None.
      router_parameters: parameters of the router and of the layer's other gates (the shared
        expert's; MoE++'s constant experts).
      norm_parameters: norm scales of the layer.
      kv_rank: width of the latent that keys and values are made of (MLA); 0: none. Only with it:
      q_rank: width of the queries' latent; 0: none.
      rope_dim: part of head_dim whose key is made without the latent, one for all heads.
      value_dim: width of a head's values; 0: head_dim.
    """

    heads: int
    kv_heads: int
    head_dim: int
    dense_width: int = 0
    widths: tuple[int, ...] = ()
    shared_width: int = 0
    ffn_matrices: int = 3
    nominal_active: float = 0.0
    router: str | None = None
    router_parameters: int = 0
    norm_parameters: int = 0
    kv_rank: int = 0
    q_rank: int = 0
    rope_dim: int = 0
    value_dim: int = 0

    @property
    def score_width(self) -> int:
        """Multiply-adds of one query with one key, and of its weight with one value, all heads."""
        return self.heads * (self.head_dim + (self.value_dim or self.head_dim))

    @property
    def nominal_active_width(self) -> float:
        """Routed hidden units per token at `nominal_active` experts of mean width."""
        if not self.widths:
            return 0.0
        return self.nominal_active * sum(self.widths) / len(self.widths)


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """What a model holds; everything that the counts need."""

    vocab_size: int
    d_model: int
    layers: tuple[LayerShape, ...]
    tied_embeddings: bool = False
    final_norm_parameters: int = 0


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Parameter counts by role. `active_experts` is at the active widths asked for."""

    embedding: int
    head: int
    attention: int
    dense_ffn: int
    experts: int
    shared_experts: int
    active_experts: float
    router: int
    norms: int

    @property
    def total(self) -> int:
        """All weight matrices (see the convention at the top)."""
        return self.non_embedding + self.embedding + self.head

    @property
    def non_embedding(self) -> int:
        """`total` without embedding and head."""
        return self.attention + self.dense_ffn + self.experts + self.shared_experts

    @property
    def active_non_embedding(self) -> float:
        """What a token uses of `non_embedding`."""
        return self.non_embedding - self.experts + self.active_experts

    @property
    def active(self) -> float:
        """What a token uses of `total` (embedding and head count in full)."""
        return self.active_non_embedding + self.embedding + self.head

    @property
    def everything(self) -> int:
        """Every number that is trained: `total`, routers and norm scales."""
        return self.total + self.router + self.norms


def attention_parameters(d_model: int, layer: LayerShape) -> int:
    """Query, key, value and output projections, no biases; with a latent, what leads to and from
    it (DeepSeek-V2 2.1)."""
    if layer.kv_rank:
        queries, values = layer.heads * layer.head_dim, layer.heads * layer.value_dim
        keys = layer.heads * (layer.head_dim - layer.rope_dim)
        to_queries = layer.q_rank * (d_model + queries) if layer.q_rank else d_model * queries
        to_latent = d_model * (layer.kv_rank + layer.rope_dim)
        return to_queries + to_latent + layer.kv_rank * (keys + values) + values * d_model
    return d_model * layer.head_dim * (2 * layer.heads + 2 * layer.kv_heads)


def unit_parameters(d_model: int, layer: LayerShape) -> int:
    """Weights of one hidden unit of the layer's FFNs: a row of `D` numbers in each matrix."""
    return layer.ffn_matrices * d_model


def parameters(shape: ModelShape, active_widths: tuple[float, ...] | None = None) -> Parameters:
    """Counts of a model.

    Args:
      active_widths: routed hidden units in use per token, one number per MoE layer in order;
        None plans with `LayerShape.nominal_active_width`.

    Raises:
      ValueError: the number of `active_widths` is not the number of MoE layers.
    """
    d_model, layers = shape.d_model, shape.layers
    widths = _active_widths(shape, active_widths)
    moe_layers = [layer for layer in layers if layer.widths]
    table = shape.vocab_size * d_model
    return Parameters(
        embedding=table,
        head=0 if shape.tied_embeddings else table,
        attention=sum(attention_parameters(d_model, layer) for layer in layers),
        dense_ffn=sum(unit_parameters(d_model, layer) * layer.dense_width for layer in layers),
        experts=sum(unit_parameters(d_model, layer) * sum(layer.widths) for layer in layers),
        shared_experts=sum(
            unit_parameters(d_model, layer) * layer.shared_width for layer in layers
        ),
        active_experts=sum(
            unit_parameters(d_model, layer) * width
            for layer, width in zip(moe_layers, widths, strict=True)
        ),
        router=sum(layer.router_parameters for layer in layers),
        norms=sum(layer.norm_parameters for layer in layers) + shape.final_norm_parameters,
    )


def flops_per_width(shape: ModelShape) -> float:
    """Training FLOPs per token of one routed hidden unit in one layer (the mean over MoE layers,
    where gated and ungated ones are mixed)."""
    per_unit = [unit_parameters(shape.d_model, layer) for layer in shape.layers if layer.widths]
    return 3 * 2 * (sum(per_unit) / len(per_unit) if per_unit else 3 * shape.d_model)


def flops_per_token(
    shape: ModelShape, seq_len: int, active_widths: tuple[float, ...] | None = None
) -> float:
    """Training FLOPs per token (see the convention at the top); arguments as `parameters`."""
    counts = parameters(shape, active_widths)
    head = shape.vocab_size * shape.d_model
    matrices = counts.active_non_embedding + counts.router + head
    scores = seq_len * sum(layer.score_width for layer in shape.layers) / 2
    return 3 * (2 * matrices + 2 * scores)


def _active_widths(shape: ModelShape, given: tuple[float, ...] | None) -> tuple[float, ...]:
    moe_layers = [layer for layer in shape.layers if layer.widths]
    if given is None:
        return tuple(layer.nominal_active_width for layer in moe_layers)
    if len(given) != len(moe_layers):
        raise ValueError(f"{len(given)} active widths for {len(moe_layers)} MoE layers")
    return given
