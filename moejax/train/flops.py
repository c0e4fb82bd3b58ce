"""Measured FLOPs of a run, and what fraction of this machine's peak they are (MFU)."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from moejax.config import counts
from moejax.config.files import write_json
from moejax.train.environment import cpu_model, usable_cores

PEAK_BF16 = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}
"""Dense bf16 FLOP/s per chip from the vendors' data sheets (SXM parts for NVIDIA)."""


PEAK_FILE = "gemm_peak.json"


class FlopsMeter:
    """Training FLOPs of what really ran: counts at the measured active width of each MoE layer."""

    def __init__(self, shape: counts.ModelShape, seq_len: int) -> None:
        self._shape = shape
        self._seq_len = seq_len

    def per_token(self, active_width_L: np.ndarray) -> float:
        """Training FLOPs per token; `active_width_L` is routed hidden units per token."""
        widths = tuple(float(width) for width in active_width_L)
        return float(counts.flops_per_token(self._shape, self._seq_len, widths))

    def active(self, active_width_L: np.ndarray) -> tuple[float, float]:
        """Measured active parameters: all, and without embedding and head."""
        widths = tuple(float(width) for width in active_width_L)
        measured = counts.parameters(self._shape, widths)
        return float(measured.active), float(measured.active_non_embedding)


def peak_flops(cache_dir: Path, mesh: Mesh | None = None) -> tuple[float, str]:
    """Peak FLOP/s of the mesh (None: of the default device), and what that number is.

    An accelerator's is looked up. A CPU has no useful data sheet, so the peak is a float32 matrix
    product measured once and cached under `cache_dir`, and is that of the whole machine, however
    many devices it is told to be; NaN for an unknown accelerator.
    """
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        known = [name for name in PEAK_BF16 if device.device_kind.startswith(name)]
        if not known:
            return float("nan"), f"unknown peak of {device.device_kind}"
        name = max(known, key=len)
        chips = 1 if mesh is None else mesh.size
        return chips * PEAK_BF16[name], f"{name} bf16 peak" + f" x{chips}" * (chips > 1)
    path, key = cache_dir / PEAK_FILE, _this_cpu()
    cached = _read(path)
    if key not in cached:
        cached[key] = measure_gemm()
        write_json(path, cached)
    return float(cached[key]), "measured GEMM peak"


def recorded_peak(cache_dir: Path) -> float:
    """What `peak_flops` once measured on this CPU, or NaN; asks no device and measures nothing."""
    found = _read(cache_dir / PEAK_FILE).get(_this_cpu())
    return float(found) if isinstance(found, int | float) else float("nan")


def _this_cpu() -> str:
    return f"{cpu_model()} x{usable_cores()} jax {jax.__version__}"


def measure_gemm(size: int = 1024, repeats: int = 8) -> float:
    """FLOP/s of the fastest of `repeats` float32 `size`^3 matrix products."""
    matrix = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(matrix, matrix))
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(product(matrix, matrix))
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text())
    except ValueError:  # a cache: what cannot be read is measured again
        return {}
    return record if isinstance(record, dict) else {}
