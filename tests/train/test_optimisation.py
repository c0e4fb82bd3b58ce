"""Schedule, decay masks and the step: what one optimiser step does to the numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import standin

import runs
from moejax.config import ConfigError, build, to_config_dict
from moejax.data import DataConfig, Dataset, TrainStream
from moejax.train import Experiment
from moejax.train.optimizer import OptimizerConfig, decay_mask, make_optimizer
from moejax.train.schedule import ScheduleConfig, multiplier
from moejax.train.state import TrainState, make_init, merge
from moejax.train.step import make_train_step, model_inputs

Text = tuple[DataConfig, Dataset]


def rates(config: ScheduleConfig, steps: int) -> np.ndarray:
    return np.asarray(jax.vmap(multiplier(config, steps, 10))(jnp.arange(steps)))


def test_wsd_by_hand() -> None:
    config = ScheduleConfig(kind="wsd", warmup=4, decay=5, final_fraction=0.5)
    expected = [0.25, 0.5, 0.75, 1, 1, 1, 1, 0.9, 0.8, 0.7, 0.6, 0.5]
    np.testing.assert_allclose(rates(config, 12), expected, rtol=1e-6)


def test_cosine_by_hand() -> None:
    config = ScheduleConfig(kind="cosine", warmup=2, final_fraction=0.2)
    expected = [0.5, 1, *(0.2 + 0.4 * (1 + np.cos(np.pi * k / 4)) for k in (1, 2, 3, 4))]
    np.testing.assert_allclose(rates(config, 6), expected, rtol=1e-6)
    assert rates(config, 6)[-1] == pytest.approx(0.2)


def test_constant_and_no_warmup() -> None:
    config = ScheduleConfig(kind="constant", warmup=0, final_fraction=0.0)
    np.testing.assert_array_equal(rates(config, 5), np.ones(5, np.float32))


def test_warmup_then_constant_by_hand() -> None:
    expected = [0.25, 0.5, 0.75, 1, 1, 1]
    np.testing.assert_array_equal(rates(ScheduleConfig(kind="constant", warmup=4), 6), expected)


def test_steps_by_hand() -> None:
    """DeepSeekMoE: x0.316 after 80 % of the steps, and again after 90 %."""
    config = ScheduleConfig(kind="steps", warmup=2, milestones=("80%", "90%"), factor=0.316)
    expected = [0.5, *[1.0] * 15, *[0.316] * 2, *[0.316**2] * 2]
    np.testing.assert_allclose(rates(config, 20), expected, rtol=1e-6)
    milestones = dataclasses.replace(config, milestones=(16, "180 tokens"))  # 10 tokens a step
    np.testing.assert_array_equal(rates(milestones, 20), rates(config, 20))


def test_milestones_of_a_short_run_may_coincide() -> None:
    config = ScheduleConfig(kind="steps", warmup=0, milestones=("80%", "90%"), factor=0.5)
    np.testing.assert_array_equal(rates(config, 3), [1.0, 1.0, 0.5])
    np.testing.assert_array_equal(rates(config, 1), [1.0])


def test_rsqrt_by_hand() -> None:
    config = ScheduleConfig(kind="rsqrt", warmup=4)
    expected = [0.25, 0.5, 0.75, 1, *(np.sqrt(4 / step) for step in (5, 6, 7, 8, 9))]
    np.testing.assert_allclose(rates(config, 9), expected, rtol=1e-6)
    without = ScheduleConfig(kind="rsqrt", warmup=0)
    np.testing.assert_allclose(rates(without, 3), 1 / np.sqrt([1, 2, 3]), rtol=1e-6)


def test_durations_of_a_schedule_are_steps_tokens_or_percent() -> None:
    given = [rates(ScheduleConfig(warmup=w, decay=0), 40) for w in (4, "40 tokens", "10%")]
    np.testing.assert_array_equal(given[0], given[1])
    np.testing.assert_array_equal(given[0], given[2])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train.steps": 10, "schedule.warmup": 11}, r"schedule.warmup=11: .* at most 10"),
        ({"train.steps": 10, "schedule.warmup": 6, "schedule.decay": 5}, r"decay=5: .* at most 4"),
        ({"train.steps": 0}, r"train.steps=0: is no step at all; nearest valid value 1"),
        ({"train.accumulate": 3}, r"batch_size=4: is not a multiple of accumulate=3; .* value 3"),
        ({"train.accumulate": 8}, r"batch_size=4: is not a multiple of accumulate=8; .* value 8"),
        ({"evaluation.every": 0}, r"evaluation.every=0: must be at least 1 step"),
        ({"checkpoint.every": "0%"}, r"checkpoint.every='0%': must be at least 1 step"),
        ({"model.vocab_size": 100}, r"vocab_size=100: is smaller than the 258 tokens"),
        ({"data.seq_len": 9999}, r"seq_len=9999: is longer than model.max_seq_len=4096"),
        ({"optimizer.decay": "patterns"}, r"decay_patterns=\[\]: needed with decay=patterns"),
        ({"optimizer.lr": 0.0}, r"optimizer.lr=0.0: must be > 0"),
        ({"schedule.kind": "cosin"}, r"did you mean 'cosine'"),
        (
            {"schedule.kind": "steps", "schedule.milestones": (90, 80)},
            r"schedule.milestones\[0\]=90: step 90 is after the next milestone .* at most 80",
        ),
        (
            {"schedule.kind": "steps", "schedule.milestones": ("80%", 101)},
            r"schedule.milestones\[1\]=101: step 101 is after .* the end of the run; at most 100",
        ),
        (
            {"schedule.kind": "steps", "schedule.milestones": ()},
            r"schedule.milestones=\(\): kind=steps needs at least one; .* value \('80%',\)",
        ),
        ({"schedule.factor": 0.0}, r"schedule.factor=0.0: must be in \(0"),
        ({"seed": -1}, r"seed=-1"),
    ],
)
def test_impossible_experiments_are_refused_in_one_line(
    text: Text, changes: dict[str, Any], message: str
) -> None:
    config = to_config_dict(standin.experiment(text[0], steps=100))
    for key, value in changes.items():
        *groups, name = key.split(".")
        node = config
        for group in groups:
            node = node[group]
        node[name] = value
    with pytest.raises(ConfigError, match=message) as caught:
        build(Experiment, config)
    assert "\n" not in str(caught.value)


def test_an_experiment_survives_the_round_trip(text: Text) -> None:
    experiment = standin.experiment(text[0])
    assert build(Experiment, to_config_dict(experiment)) == experiment


PARAMS = {
    "embed": {"table_VD": jnp.ones((4, 2))},
    "final_norm": {"scale_D": jnp.ones(2)},
    "segments": {"0": {"attn_norm": {"scale_LD": jnp.ones((3, 2))}, "w_LDF": jnp.ones((3, 2, 5))}},
    "head": {"bias_V": jnp.ones(4)},
}


def test_decay_masks() -> None:
    def decayed(config: OptimizerConfig) -> list[str]:
        mask = decay_mask(config, PARAMS)
        leaves = jax.tree_util.tree_leaves_with_path(mask)
        return [jax.tree_util.keystr(p, simple=True, separator="/") for p, m in leaves if m]

    assert decayed(OptimizerConfig()) == ["embed/table_VD", "segments/0/w_LDF"]
    assert len(decayed(OptimizerConfig(decay="all"))) == 5
    only = OptimizerConfig(decay="patterns", decay_patterns=("^embed/", "bias"))
    assert decayed(only) == ["embed/table_VD", "head/bias_V"]
    with pytest.raises(ConfigError, match="'emebd' matches no parameter; there are embed/table_VD"):
        decay_mask(dataclasses.replace(only, decay_patterns=("emebd",)), PARAMS)


def test_real_models_decay_everything_but_norms() -> None:
    from configs import lm
    from moejax.models import Transformer

    config = build(Experiment, lm.get_config("size=nano,quick,moe=hetero_top_p"))
    params, _ = jax.eval_shape(Transformer(config.model).init, jax.random.key(0))
    mask = decay_mask(config.optimizer, params)
    kept = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, decays in jax.tree_util.tree_leaves_with_path(mask)
        if not decays
    ]
    assert kept
    assert all("norm" in name for name in kept), kept


def test_clipping_and_weight_decay() -> None:
    config = OptimizerConfig(lr=0.5, weight_decay=0.1, clip_norm=1.0, b1=0.0, b2=0.0, eps=1e-12)
    optimizer = make_optimizer(config, lambda count: jnp.float32(1.0))
    params = {"w": jnp.full(4, 2.0), "norm": jnp.full(4, 2.0)}
    grads = jax.tree.map(lambda x: 100.0 * jnp.ones_like(x), params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.5 * (1 + 0.1 * 2.0), rtol=1e-5)
    np.testing.assert_allclose(updates["norm"], -0.5, rtol=1e-5)
    clipped, _ = optax.clip_by_global_norm(1.0).update(grads, optax.EmptyState())
    assert float(optax.tree.norm(clipped)) == pytest.approx(1.0, rel=1e-6)


def one_step(text: Text, accumulate: int, **changes: Any) -> tuple[TrainState, TrainState, Any]:
    experiment = standin.experiment(text[0], steps=100)
    model = standin.standin(experiment, **changes)
    optimizer = make_optimizer(experiment.optimizer, lambda count: jnp.float32(1.0))
    state = make_init(model, optimizer)(jnp.int32(3))
    stream = TrainStream(text[1], seed=3, batch_size=8, seq_len=16)
    batch = model_inputs(stream.batch(0))
    batch["loss_mask"] = batch["loss_mask"].copy()
    batch["loss_mask"][:3] = 0.0  # micro-batches of unequal weight
    step = make_train_step(model, optimizer, lambda done: jnp.float32(0.1), accumulate)
    after, metrics = jax.jit(step)(state, batch)
    return state, after, jax.device_get(metrics)


@pytest.mark.parametrize("accumulate", [2, 8])
def test_accumulated_gradients_are_those_of_the_whole_batch(text: Text, accumulate: int) -> None:
    """Without the stand-in's noise, whose key differs by micro-batch."""
    _, whole, metrics = one_step(text, 1, noise=0.0)
    _, parts, accumulated = one_step(text, accumulate, noise=0.0)
    np.testing.assert_allclose(metrics["total_loss"], accumulated["total_loss"], rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], accumulated["grad_norm"], rtol=1e-5)
    np.testing.assert_array_equal(metrics["_routing"]["tokens"], accumulated["_routing"]["tokens"])
    assert int(parts.step) == int(whole.step) == 1


def test_a_step_moves_everything_once(text: Text) -> None:
    before, after, metrics = one_step(text, 4)
    assert bool(metrics["finite"])
    for old, new in zip(
        jax.tree.leaves(before.trainable), jax.tree.leaves(after.trainable), strict=True
    ):
        assert (np.asarray(old) != np.asarray(new)).any()
    # Once per optimiser step, not once per micro-batch.
    np.testing.assert_allclose(np.abs(after.router_state["bias_E"]).max(), 0.01)
    assert runs.tree_bytes(before.rng) == runs.tree_bytes(after.rng)


def test_a_non_finite_step_keeps_the_whole_old_state(text: Text) -> None:
    first_token = int(
        TrainStream(text[1], seed=3, batch_size=8, seq_len=16).batch(0)["tokens"][0, 0]
    )
    before, after, metrics = one_step(text, 1, poison=first_token)
    assert not bool(metrics["finite"])
    assert runs.tree_bytes(before) == runs.tree_bytes(after)


def test_merge() -> None:
    a, b, c = (jnp.float32(x) for x in (1, 2, 3))
    assert merge({"x": {"a": a}}, {"x": {"b": b}, "y": c}) == {"x": {"a": a, "b": b}, "y": c}
    assert merge({"x": a}, {}) == {"x": a}
    with pytest.raises(ValueError, match="'a' is both trainable and frozen"):
        merge({"x": {"a": a}}, {"x": {"a": b}})
