"""The TPU flash kernel: interpreted it is einsum attention, and a program for a TPU has it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moejax.config import ConfigError
from moejax.models.attention import (
    BACKENDS,
    AttentionConfig,
    AttentionInputs,
    Documents,
    LatentAttentionConfig,
    splash,
)

LENGTH = 150  # no whole number of blocks
IDS = np.ones((2, LENGTH), np.int32)
IDS[0, 60:140], IDS[0, 140:], IDS[1, 20:30], IDS[1, 30:] = 2, 0, 0, 3
POSITIONS = np.stack(
    [np.concatenate([np.arange(60), np.arange(80), np.zeros(10)]),
     np.concatenate([np.arange(20), np.zeros(10), np.arange(120)])]
).astype(np.int32)  # fmt: skip
GQA = AttentionConfig(heads=2, kv_heads=1, head_dim=8, qk_norm=True)
MLA = LatentAttentionConfig(
    heads=2, kv_lora_rank=6, qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=5
)


@pytest.mark.parametrize("config", [GQA, MLA], ids=["gqa", "mla"])
def test_it_is_einsum_attention_in_values_and_gradients(rng, config, monkeypatch):
    monkeypatch.setattr(splash, "LARGEST_BLOCK", 128)  # two blocks each way, one of them skipped
    inputs = AttentionInputs(jnp.asarray(POSITIONS), jnp.asarray(IDS))
    x_BSD, dout = jnp.asarray(rng.standard_normal((2, 2, LENGTH, 12)), jnp.float32)

    def run(backend):
        module = dataclasses.replace(config, backend=backend).build(12, rngs=nnx.Rngs(0))
        graph, params = nnx.split(module)

        @jax.jit
        def value_and_gradient(params, x_BSD):
            def loss(params, x_BSD):
                y_BSD = nnx.merge(graph, params)(x_BSD, inputs)[0]
                return (y_BSD * dout).sum(), y_BSD

            return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x_BSD)

        (_, y_BSD), gradient = value_and_gradient(params, x_BSD)
        return y_BSD, gradient

    got, want = run("splash_interpret"), run("einsum")
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


def test_decoding_does_without_it():
    """A cache's queries stand at places that only the run knows: einsum, on every platform."""
    q, k = jnp.ones((1, 2, 2, 8)), jnp.ones((1, 5, 1, 8))
    documents = Documents(jnp.ones((1, 2), int), jnp.ones((1, 5), int), jnp.asarray(3))
    texts = [
        jax.jit(lambda: BACKENDS[name](q, k, k, documents, 1.0)).lower().as_text()  # noqa: B023
        for name in ("splash", "einsum")
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("heads, kv_heads, width, value_dim", [(4, 2, 128, 128), (2, 2, 192, 128)])
def test_a_tpu_gets_the_kernel_forward_and_backward(heads, kv_heads, width, value_dim):
    """Lowered for TPU on this CPU, at the widths of Qwen3 and of DeepSeek's MLA."""
    shapes = [(heads, width), (kv_heads, width), (kv_heads, value_dim)]
    arguments = [jax.ShapeDtypeStruct((1, 256, *shape), jnp.bfloat16) for shape in shapes]
    ids = jnp.ones((1, 256), jnp.int32)

    def loss(q, k, v):
        return BACKENDS["splash"](q, k, v, Documents(ids, ids), 0.1).astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*arguments)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    for kernel in ("splash_mha_fwd", "splash_mha_dq", "splash_mha_dkv"):
        assert kernel in text
    assert "256x256xf32" not in text  # no scores outside of the kernel


@pytest.mark.parametrize("config", [GQA, MLA], ids=["gqa", "mla"])
@pytest.mark.parametrize(
    "backend, here, needed, instead",
    [
        ("splash", "cpu", "TPU", "splash_interpret"),
        ("splash", "gpu", "TPU", "splash_interpret"),
        ("cudnn", "tpu", "GPU", "xla"),
    ],
)
def test_a_machine_without_it_is_told_in_one_line(config, backend, here, needed, instead):
    chosen = dataclasses.replace(config, backend=backend)
    with pytest.raises(ConfigError) as caught:
        chosen.check_platform(here, "model.attention")
    assert str(caught.value) == (
        f"model.attention.backend={backend!r}: needs a {needed} but JAX runs on {here} here; "
        f"nearest valid value {instead!r}"
    )
    chosen.check_platform(needed.lower(), "model.attention")
    dataclasses.replace(config, backend=instead).check_platform(here, "model.attention")
