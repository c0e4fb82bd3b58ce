"""Our weights in the layouts of torch and transformers, as NumPy arrays, and how to compare.

No torch in here: the layouts are held to the definitions by tests that do without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

TOLERANCE = 1e-4
"""Largest difference from a peer on the same weights, over the largest value of either."""

Arrays = dict[str, np.ndarray]


def hf_block(layer: Mapping[str, np.ndarray]) -> Arrays:
    """A transformers 5 sparse MoE block of Mixtral or OLMoE: `gate.weight` `[E, D]`,
    `experts.gate_up_proj` `[E, 2F, D]` (gates first) and `experts.down_proj` `[E, D, F]`.

    Args:
      layer: gate, up, down `[E, F, D]`, router `[D, E]`.
    """
    return {
        "gate.weight": np.ascontiguousarray(layer["router"].T),
        "experts.gate_up_proj": np.concatenate([layer["gate"], layer["up"]], axis=1),
        "experts.down_proj": np.ascontiguousarray(layer["down"].transpose(0, 2, 1)),
    }


def lm_arrays(params: Mapping[str, Any]) -> Arrays:
    """A language model of one segment (all layers alike) as `torch_lm.TorchLM` names its weights;
    linear weights are `[out, in]`."""
    ((_, positions),) = params["segments"].items()
    ((_, stacked),) = positions.items()
    found = {
        "embed.weight": np.asarray(params["embed"]["table_VD"]),
        "final_norm": np.asarray(params["final_norm"]["scale_D"]),
    }
    if "head" in params:
        found["head.weight"] = np.asarray(params["head"]["table_VD"])
    attention = stacked["attention"]
    for index in range(len(stacked["ffn_norm"]["scale_D"])):
        own = {
            "attention_norm": stacked["attention_norm"]["scale_D"][index],
            "ffn_norm": stacked["ffn_norm"]["scale_D"][index],
            "o.weight": _rows(attention["o_HdD"][index], -1),
        }
        for name in ("q_DHd", "k_DGd", "v_DGd"):
            own[f"{name[0]}.weight"] = _rows(attention[name][index], 0)
        own |= _ffn(stacked["ffn"], index)
        found |= {f"blocks.{index}.{name}": np.asarray(value) for name, value in own.items()}
    return found


def _ffn(ffn: Mapping[str, Any], index: int) -> Arrays:
    if "experts" not in ffn:
        return {
            "ffn.gate.weight": ffn["gate_FD"][index],
            "ffn.up.weight": ffn["up_FD"][index],
            "ffn.down.weight": np.ascontiguousarray(np.asarray(ffn["down_FD"][index]).T),
        }
    layer = {name[:-4]: np.asarray(weight[index]) for name, weight in ffn["experts"].items()}
    block = hf_block(layer | {"router": np.asarray(ffn["router"]["w_DE"][index])})
    return {f"ffn.{name}": value for name, value in block.items()}


def _rows(weight: Any, input_axis: int) -> np.ndarray:
    """`[out, in]` from a weight whose model axis, first or last, is its input or its output."""
    array = np.asarray(weight)
    flat = (
        array.reshape(array.shape[0], -1) if input_axis == 0 else array.reshape(-1, array.shape[-1])
    )
    return np.ascontiguousarray(flat.T)


def difference(ours: Any, theirs: Any, share: float = 1.0) -> float:
    """`max|a - b| / max(|a|, |b|)`, the numerator over the `share` of rows that agree best."""
    a, b = _float64(ours), _float64(theirs)
    if a.shape != b.shape:
        return float("inf")
    rows = np.abs(a - b).reshape(len(a), -1).max(-1)
    return float(np.quantile(rows, share) / max(np.abs(a).max(), np.abs(b).max(), 1e-30))


def _float64(array: Any) -> np.ndarray:
    if hasattr(array, "cpu"):  # torch: NumPy knows neither its GPUs nor its bfloat16
        array = array.cpu().double()
    return np.asarray(array, np.float64)


def mismatch(
    pairs: Mapping[str, tuple[Any, Any]], tolerance: float = TOLERANCE, share: float = 1.0
) -> str:
    """What disagrees by more than `tolerance`, in words, or ""; `share`: see `difference`."""
    found = {name: difference(*pair, share) for name, pair in pairs.items()}
    bad = {name: value for name, value in found.items() if not value <= tolerance}
    if not bad:
        return ""
    listed = ", ".join(f"{name} {value:.1e}" for name, value in bad.items())
    return f"mismatch with ours beyond {tolerance:g}: {listed}"
