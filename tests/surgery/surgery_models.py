"""Tiny models that nobody trained, and their FFNs in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moejax.experts import MoeConfig, MoELayer, RouterState, WidthPlan
from moejax.experts.spec import ACTIVATIONS
from moejax.models import ModelConfig, Transformer
from moejax.models.attention import AttentionConfig
from moejax.routing import LossesConfig, RouterInputs
from moejax.routing.losses import LoadBalance
from moejax.surgery.blocks import take_apart

NO_LOSSES = LossesConfig(LoadBalance(0.0))
VOCAB, D = 32, 16


def moe(router: Any, **fields: Any) -> MoeConfig:
    """A layer of six experts."""
    given = {"experts": 6, "widths": WidthPlan(mean=8), "losses": NO_LOSSES, "backend": "loop"}
    return MoeConfig(**given | {"router": router} | fields)


def model(*layers: MoeConfig | None, **fields: Any) -> ModelConfig:
    """A model of these layers; None is a dense one."""
    kinds = list(dict.fromkeys(layer for layer in layers if layer is not None))
    return ModelConfig(
        **{
            "vocab_size": VOCAB,
            "d_model": D,
            "num_layers": len(layers),
            "ffn_width": 24,
            "attention": AttentionConfig(heads=2),
            "layers": tuple(f"k{kinds.index(one)}" if one else "dense" for one in layers),
            "moe_variants": {f"k{i}": kind for i, kind in enumerate(kinds)},
        }
        | fields
    )


def random_tree(config: ModelConfig, seed: int = 0) -> dict[str, Any]:
    """Parameters and router state, all of them drawn: routers decide, and nothing is 0."""
    shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    params, state = jax.tree.map(
        lambda leaf: 0.5 * rng.standard_normal(leaf.shape).astype(leaf.dtype), shapes
    )
    return {"params": params, "router_state": state}


def exact_outputs(
    config: ModelConfig, tree: dict[str, Any], edits: dict[int, Any] | None = None
) -> np.ndarray:
    """float64 `[L, T, D]`: what the FFN of each layer makes of the same tokens, all in float64 but
    the routers; the last token is padding. `edits` change the routing of layers by number."""
    x_TD = np.random.default_rng(5).standard_normal((24, D))
    layers = take_apart(config, tree)

    def run(x_TD: Any, params: Any, states: Any) -> Any:
        found = []
        for number, layer in enumerate(layers):
            ffn = params[number]["ffn"]
            if layer.moe is None:
                into = (x_TD @ ffn[f"{name}_FD"].T for name in ("gate", "up"))
                found.append(ACTIVATIONS[config.activation](*into) @ ffn["down_FD"])
                continue
            inputs = RouterInputs.of(len(x_TD), valid_T=jnp.arange(len(x_TD)) < len(x_TD) - 1)
            made = _filled(layer.moe, ffn, states[number].get("ffn", {}))
            found.append(made.forward(x_TD, inputs, (edits or {}).get(number)).y_TD)
        return jnp.stack(found)

    def wide(leaf: np.ndarray) -> Any:
        return jnp.asarray(leaf, jnp.float64 if leaf.dtype == np.float32 else None)

    with jax.enable_x64(True):
        params = [jax.tree.map(wide, layer.params) for layer in layers]
        out = jax.jit(run)(jnp.asarray(x_TD), params, [layer.state for layer in layers])
        assert out.dtype == jnp.float64
        return np.asarray(out)[:, :-1]


def _filled(moe: MoeConfig, params: Any, state: Any) -> MoELayer:
    """The layer as a module with these parameters."""
    abstract = nnx.eval_shape(lambda: MoELayer(D, moe, rngs=nnx.Rngs(0)))
    graph, *templates = nnx.split(abstract, nnx.Param, RouterState)
    for template, pure in zip(templates, (params, state), strict=True):
        nnx.replace_by_pure_dict(template, pure)
    return nnx.merge(graph, *templates)
