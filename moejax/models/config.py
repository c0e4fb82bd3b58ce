"""Knobs of the decoder-only transformer, and their validation."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from moejax.config.counts import ModelShape
from moejax.config.knobs import ConfigError, knob, nearest
from moejax.experts.config import MoeConfig
from moejax.experts.spec import ACTIVATIONS, projections
from moejax.models.attention import ATTENTIONS, AttentionConfig, AttentionKind
from moejax.models.remat import POLICIES
from moejax.models.segments import Plan

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A pre-norm decoder-only transformer (Llama-like) whose FFNs may be mixtures of experts."""

    vocab_size: int = knob(512, low=2, unit="tokens", doc="Rows of the embedding (V).")
    d_model: int = knob(64, low=2, unit="dimensions", doc="Model width (D).")
    num_layers: int = knob(4, low=1, unit="layers", doc="Transformer blocks (L).")
    ffn_width: int = knob(256, low=1, unit="hidden units", doc="Width of a dense FFN.")
    activation: str = knob(
        "swiglu",
        choices=tuple(ACTIVATIONS),
        doc="Activation of dense FFNs (MoE layers: `moe`).",
    )
    attention: AttentionKind = knob(AttentionConfig(), registry=ATTENTIONS)
    moe: MoeConfig | None = knob(None, doc="The MoE layer; None: every layer is dense.")
    first_dense: int = knob(0, low=0, unit="layers", doc="Leading layers that stay dense.")
    moe_every: int = knob(
        1, low=1, unit="layers", doc="Every n-th layer after `first_dense` is MoE, the last of n."
    )
    layers: tuple[str, ...] = knob(
        (), doc="The FFN of every layer by name: dense, moe, or a key of moe_variants."
    )
    moe_variants: dict[str, MoeConfig] = knob({}, doc="Further MoE layers, by name, for `layers`.")
    allow_noncausal: bool = knob(
        False,
        doc="Accept routing in which a token sees later ones (expert choice): its loss is not that "
        "of a language model that generates.",
    )
    tied_embeddings: bool = knob(False, doc="Use the embedding as output head.")
    norm_eps: float = knob(1e-6, low=0.0, low_open=True, doc="RMSNorm epsilon.")
    max_seq_len: int = knob(4096, low=1, unit="tokens", doc="Longest sequence allowed.")
    param_dtype: str = knob("float32", choices=DTYPES, doc="Dtype of stored parameters.")
    compute_dtype: str = knob("float32", choices=DTYPES, doc="Dtype of the matrix products.")
    logits_dtype: str = knob("float32", choices=DTYPES, doc="Dtype logits are rounded to.")
    scan: bool = knob(True, doc="Scan over repeated layers; False unrolls them.")
    remat: str = knob("none", choices=POLICIES, doc="What to recompute in the backward pass.")
    loss_chunk: int = knob(
        0, low=0, unit="positions", doc="Positions of S per cross-entropy chunk; 0: all."
    )

    def validate(self, path: str) -> None:
        """Raises ConfigError when the parts do not fit together."""
        self.attention.resolve(self.d_model, f"{path}.attention")
        if self.layers and len(self.layers) != self.num_layers:
            raise ConfigError(
                f"{path}.layers: names {len(self.layers)} layers but {path}.num_layers is "
                f"{self.num_layers}; nearest valid value {len(self.layers)}"
            )
        for name in sorted({"dense", "moe"} & set(self.moe_variants)):
            raise ConfigError(
                f"{path}.moe_variants.{name}: the name is taken ({name!r} already stands for a "
                f"layer); nearest valid value {name + '_2'!r}"
            )
        known = ["dense", *(["moe"] if self.moe else []), *self.moe_variants]
        for index, name in enumerate(self.layers):
            if name not in known:
                raise ConfigError(
                    f"{path}.layers[{index}]: unknown layer {name!r}{nearest(name, known)}; "
                    f"known: {', '.join(known)}"
                )
        if self.first_dense > self.num_layers:
            raise ConfigError(
                f"{path}.first_dense: {self.first_dense} of {self.num_layers} layers; "
                f"nearest valid value {self.num_layers - (self.moe is not None)}"
            )
        if self.moe is not None and not self.layers and not any(self.plan()):
            raise ConfigError(
                f"{path}.moe: no layer uses it: first_dense={self.first_dense} and moe_every="
                f"{self.moe_every} leave none of {self.num_layers}; nearest valid value: moe=None"
            )

        carried = {moe.num_experts for moe in self.plan() if moe is not None and moe.router.carries}
        if len(carried) > 1:
            raise ConfigError(
                f"{path}.moe_variants: routers that pass logits on must have the same number of "
                f"experts in all layers, got {sorted(carried)}; nearest valid value {max(carried)}"
            )
        if not self.allow_noncausal:
            self._check_causal(path)

    def _check_causal(self, path: str) -> None:
        for moe in dict.fromkeys(self.plan()):
            if moe is None:
                continue
            bounded = not moe.capacity.causal(moe.router.slots(moe.num_experts))
            what = "the expert capacity" if bounded else "the router"
            if bounded or not moe.router.causal:
                raise ConfigError(
                    f"{path}.allow_noncausal=False: {what} lets a token's routing depend on later "
                    "tokens; nearest valid value True"
                )

    def plan(self) -> Plan:
        """The FFN of every layer: an `MoeConfig`, or None for dense."""
        if self.layers:
            named = {"dense": None, "moe": self.moe, **self.moe_variants}
            return tuple(named[name] for name in self.layers)
        return tuple(
            self.moe
            if layer >= self.first_dense and (layer - self.first_dense + 1) % self.moe_every == 0
            else None
            for layer in range(self.num_layers)
        )

    def shape(self) -> ModelShape:
        """What the analytic counts need."""
        attention = self.attention.layer_shape(self.d_model)
        norms = 2 * self.d_model + attention.norm_parameters
        base = dataclasses.replace(attention, norm_parameters=norms)
        layers = []
        for moe in self.plan():
            if moe is None:
                matrices = len(projections(self.activation))
                layers.append(
                    dataclasses.replace(base, dense_width=self.ffn_width, ffn_matrices=matrices)
                )
            else:
                layers.append(moe.layer_shape(base, self.d_model))
        return ModelShape(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            layers=tuple(layers),
            tied_embeddings=self.tied_embeddings,
            final_norm_parameters=self.d_model,
        )

    @property
    def dtypes(self) -> tuple[jnp.dtype, jnp.dtype, jnp.dtype]:
        """Parameter, compute and logits dtypes."""
        names = (self.param_dtype, self.compute_dtype, self.logits_dtype)
        return tuple(jnp.dtype(name) for name in names)  # type: ignore[return-value]
