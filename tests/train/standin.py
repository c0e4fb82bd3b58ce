"""A model that trains in milliseconds and has the interface of `Transformer`, with one MoE layer.

The faults, the loop and the run directory do not care what a model is; with this one their tests
take seconds. Exact resume is also tested with the real models (test_exact_resume.py).
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.config import counts
from moejax.data import DataConfig, Dataset, prepare
from moejax.models.transformer import ModelConfig
from moejax.train import Experiment, TrainConfig, run
from moejax.train.checkpoint import CheckpointConfig
from moejax.train.evaluate import EvaluationConfig
from moejax.train.log import LogConfig
from moejax.train.optimizer import OptimizerConfig
from moejax.train.schedule import ScheduleConfig

SENTENCE = "the cat sat on a mat and saw 12 dogs run past; then, at noon, it slept."
EXPERTS = 4


def write_corpus(directory: Path, documents: int = 8) -> DataConfig:
    """A few hundred words in `.txt` files, different in each; its own cache beside it."""
    rng = np.random.default_rng(7)
    text = directory / "text"
    text.mkdir(parents=True, exist_ok=True)
    for index in range(documents):
        words = rng.choice(SENTENCE.split(), size=17 + 3 * index)
        (text / f"{index:02d}.txt").write_text(" ".join(words) + "\n")
    return DataConfig(
        corpus=f"files:{text}/*.txt", seq_len=16, cache_dir=str(directory / "cache"),
        validation_fraction=0.2,
    )  # fmt: skip


def make_dataset(directory: Path) -> tuple[DataConfig, Dataset]:
    data = write_corpus(directory)
    return data, prepare(data, None)


def experiment(data: DataConfig, *, steps: int = 12, **changes: Any) -> Experiment:
    """A run of `steps` steps of 4 sequences; epochs end in the middle of it."""
    base = Experiment(
        model=ModelConfig(vocab_size=data.vocab_size, d_model=8),
        name="standin",
        seed=3,
        data=data,
        optimizer=OptimizerConfig(lr=0.05),
        schedule=ScheduleConfig(warmup=2),
        train=TrainConfig(batch_size=4, steps=steps),
        evaluation=EvaluationConfig(every=5, batch_size=4, max_tokens=128, trace_tokens=64),
        checkpoint=CheckpointConfig(every=4, minutes=0.0, keep=3),
        log=LogConfig(tensorboard=False),
    )
    return dataclasses.replace(base, **changes)


@dataclasses.dataclass
class StandIn:
    """Embedding, one of four expert vectors per token, head; token `poison` makes a loss NaN."""

    vocab_size: int
    d_model: int = 8
    poison: int = -1
    noise: float = 0.01

    has_global_losses = False

    def init(self, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        names = ("embed", "expert", "head")
        rows = {"embed": self.vocab_size, "expert": EXPERTS, "head": self.vocab_size}
        keys = dict(zip(names, jax.random.split(key, 3), strict=True))
        params = {
            name: {"table_VD": jax.random.normal(keys[name], (rows[name], self.d_model)) * 0.1}
            for name in names
        }
        params["final_norm"] = {"scale_D": jnp.ones(self.d_model)}
        return params, {"bias_E": jnp.zeros(EXPERTS)}

    def denominators(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {
            "targets": batch["loss_mask"].sum(),
            "tokens": (batch["segment_ids"] > 0).sum().astype(jnp.float32),
        }

    def loss(
        self,
        params: dict[str, Any],
        router_state: dict[str, Any],
        batch: dict[str, jax.Array],
        key: jax.Array,
        *,
        denominators: dict[str, jax.Array],
        train: bool,
        trace: bool = False,
    ) -> tuple[jax.Array, dict[str, Any]]:
        valid_BS = batch["segment_ids"] > 0
        x_BSD = params["embed"]["table_VD"][batch["tokens"]]
        noise = self.noise * jax.random.normal(key, x_BSD.shape) if train else 0.0
        scores_BSE = (x_BSD + noise) @ params["expert"]["table_VD"].T + router_state["bias_E"]
        expert_BS = jnp.argmax(scores_BSE, -1)
        x_BSD = (x_BSD + params["expert"]["table_VD"][expert_BS]) * params["final_norm"]["scale_D"]
        logits = x_BSD @ params["head"]["table_VD"].T
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], -1)
        nll_BS = -picked[..., 0] * batch["loss_mask"]
        count_E = jnp.where(valid_BS[..., None], jax.nn.one_hot(expert_BS, EXPERTS), 0).sum((0, 1))
        out: dict[str, Any] = {
            "nll": nll_BS.sum(),
            "targets": batch["loss_mask"].sum(),
            "tokens": valid_BS.sum(),
            "count_E": count_E,
        }
        if trace:
            out["trace"] = {"expert_LTK": (expert_BS.reshape(1, -1, 1),), "nll_BS": nll_BS}
        total = out["nll"] / denominators["targets"]
        if self.poison >= 0:
            total = jnp.where((batch["tokens"] == self.poison).any(), jnp.nan, total)
        return total, jax.lax.stop_gradient(out)

    def summarise(self, out: dict[str, Any]) -> dict[str, Any]:
        load = out["count_E"] / out["count_E"].sum()
        return {
            "loss": out["nll"] / out["targets"],
            "routing/load_max_over_mean": load.max() * EXPERTS,
            "routing/active_experts": out["count_E"].sum() / out["tokens"],
            "_routing": {"count_LE": out["count_E"][None], "tokens": out["tokens"]},
        }

    def update_router_state(
        self, router_state: dict[str, Any], out: dict[str, Any]
    ) -> dict[str, Any]:
        mean = out["count_E"].mean()
        return {"bias_E": router_state["bias_E"] + 0.01 * jnp.sign(mean - out["count_E"])}

    def host_routing(self, summary: dict[str, Any]) -> dict[str, np.ndarray]:
        routing = summary["_routing"]
        count_LE = np.asarray(routing["count_LE"], np.int64)
        active_L = count_LE.sum(-1) / max(float(routing["tokens"]), 1.0)
        return {
            "layers_L": np.zeros(1, np.int32),
            "width_LE": np.full((1, EXPERTS), self.d_model, np.int32),
            "count_LE": count_LE,
            "active_L": active_L,
            "active_width_L": active_L * self.d_model,
        }

    def host_trace(
        self, trace: dict[str, np.ndarray], batch: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        valid = batch["segment_ids"] > 0
        return {
            "layers_L": np.zeros(1, np.int32),
            "expert_LTK": trace["expert_LTK"][0][:, valid.reshape(-1)].astype(np.uint16),
            "token_T": batch["tokens"][valid],
            "loss_T": trace["nll_BS"][valid].astype(np.float32),
        }

    def shape(self) -> counts.ModelShape:
        layer = counts.LayerShape(
            heads=1,
            kv_heads=1,
            head_dim=self.d_model,
            widths=(self.d_model,) * EXPERTS,
            nominal_active=1.0,
            router="standin",
        )
        return counts.ModelShape(self.vocab_size, self.d_model, (layer,))

    def describe(self, seq_len: int) -> dict[str, Any]:
        return {"format_version": 1, "convention": counts.CONVENTION, "layers": []}


def standin(config: Experiment, **changes: Any) -> StandIn:
    return StandIn(config.model.vocab_size, **changes)


if __name__ == "__main__":  # WORKDIR STEPS CACHE_DIR [URL]: a process for the tests to kill
    workdir, steps, cache_dir, *url = sys.argv[1:]
    data = DataConfig(
        corpus=f"files:{Path(cache_dir).parent}/text/*.txt", seq_len=16, cache_dir=cache_dir,
        validation_fraction=0.2,
    )  # fmt: skip
    chosen = experiment(
        data,
        steps=int(steps),
        evaluation=EvaluationConfig(every=50, batch_size=4, max_tokens=128, trace_tokens=64),
        checkpoint=CheckpointConfig(every=7, minutes=0.0, dir="".join(url)),
        log=LogConfig(tensorboard=False, heartbeat_seconds=0.05),
    )
    run(chosen, workdir, model=standin(chosen))
