"""Merging: ESFT bit for bit; LoRA against x W + (x A) B, computed where the model computes x W."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tuned_runs as tuned

from moejax.config import ConfigError
from moejax.experts.dense import DenseFFN
from moejax.finetune.adapter import read_adapter
from moejax.finetune.merge import merge
from moejax.finetune.methods import LoRA, MultiLoRA
from moejax.interop.safetensors import SafetensorsFile
from moejax.models import Transformer
from moejax.models.block import Tokens
from moejax.probe import open_run
from moejax.train import run

RANK, ALPHA = 2, 6.0

pytestmark = pytest.mark.usefixtures("laptop")


def test_esft_merges_bit_for_bit(base: Path, tuned_selected: Path, tmp_path: Path) -> None:
    experiment = merge(read_adapter(tuned_selected), open_run(base), tmp_path / "merged")
    assert experiment.finetune is None
    merged, trained = tuned.restored(tmp_path / "merged"), tuned.restored(tuned_selected)
    assert merged.keys() == trained.keys()
    for name, leaf in trained.items():
        assert merged[name].tobytes() == leaf.tobytes(), name
    assert any(leaf.tobytes() != merged[n].tobytes() for n, leaf in tuned.restored(base).items())
    with pytest.raises(ConfigError, match="not empty"):
        merge(read_adapter(tuned_selected), open_run(base), tmp_path / "merged")


@pytest.mark.parametrize(
    "method",
    [
        LoRA(rank=RANK, alpha=ALPHA, targets=("dense",)),
        pytest.param(
            MultiLoRA(rank=RANK, alpha=ALPHA, targets=("dense",), modules=3),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["lora", "multilora"],
)
def test_merged_logits_are_those_of_the_unmerged_path(
    method: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only layer 0 is dense, so its FFN can be computed unmerged from the adapter's own file."""
    run(tuned.tuned_experiment(base, method, steps=2, lr=0.05, keep_best=False), tmp_path / "tuned")
    merge(read_adapter(tmp_path / "tuned"), open_run(base), tmp_path / "merged")
    file = SafetensorsFile(tmp_path / "tuned" / "adapter" / "adapter.safetensors")
    factors = {name.split("/", 3)[3]: file.read(name)[0] for name in file.tensors}
    bases, opened = open_run(base), open_run(tmp_path / "merged")
    token = np.random.default_rng(0).integers(0, 250, (2, 16)).astype(np.int32)
    merged = logits(opened, token)
    before = logits(bases, token)

    def low_rank(x_TD: jax.Array, name: str) -> jax.Array:
        """(alpha / r) sum_m s_m * ((x A_m) B_m), never forming the product of A and B."""
        total = jnp.zeros(())
        letters = ("FD", "DF")[name != "down_FD"]
        for module in range(getattr(method, "modules", 1)):
            a_ri = factors[f"ffn/{name}/in_Mr{letters[0]}"][module]
            b_ro = factors[f"ffn/{name}/out_Mr{letters[1]}"][module]
            scale = factors.get(f"ffn/{name}/scale_M{letters[1]}")
            one = (x_TD @ a_ri.T) @ b_ro
            total = total + (one if scale is None else one * scale[module])
        return (ALPHA / RANK) * total

    def unmerged(self: DenseFFN, x: jax.Array) -> jax.Array:
        x_TD = x.reshape(-1, x.shape[-1])
        gate_TF = x_TD @ self.gate_FD[...].T + low_rank(x_TD, "gate_FD")
        up_TF = x_TD @ self.up_FD[...].T + low_rank(x_TD, "up_FD")
        hidden_TF = jax.nn.silu(gate_TF) * up_TF
        out_TD = hidden_TF @ self.down_FD[...] + low_rank(hidden_TF, "down_FD")
        return out_TD.reshape(x.shape)

    monkeypatch.setattr(DenseFFN, "__call__", unmerged)
    beside = logits(bases, token)
    assert np.abs(merged - before).max() > 1e-3, "the adapter must do something"
    assert np.abs(merged - beside).max() <= 1e-6 * max(1.0, np.abs(merged).max())


def logits(opened: Any, token_BS: np.ndarray) -> np.ndarray:
    """`[B, S, V]` of the checkpoint that is a run's result."""
    model = Transformer(opened.experiment.model)
    found = opened.restore()
    batch, length = token_BS.shape
    positions_BS = np.tile(np.arange(length, dtype=np.int32), (batch, 1))
    segments_BS = np.ones((batch, length), np.int32)
    tokens = Tokens(*map(jnp.asarray, (token_BS, positions_BS, segments_BS)))

    @jax.jit
    def computed(params: Any, router_state: Any) -> jax.Array:
        x_BSD, _ = model.hidden(params, router_state, tokens, jax.random.key(0))
        return jnp.einsum("bsd,vd->bsv", x_BSD, model.head_table(params))

    return np.asarray(computed(found.params, found.router_state))
