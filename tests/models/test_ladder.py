"""The sizes of configs/lm.py hold what they and docs/models.md say."""

from pathlib import Path

import jax
import ladder
import pytest

from configs import lm
from moejax.models import Transformer
from moejax.models.attention import LatentAttentionConfig

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "models.md"
ACTIVE = {
    "nano": "0.26M", "tiny": "1.0M", "mini": "5.1M", "small": "30M", "base": "126M",
    "large": "352M", "1b": "1.0B", "3b": "3.0B", "16b": "2.2B", "112b": "9.5B", "671b": "35.6B",
}  # fmt: skip
"""Active parameters without embedding and head, as the docstring of configs/lm.py has them."""


def rounded(number: float, like: str) -> str:
    value = number / {"M": 1e6, "B": 1e9}[like[-1]]
    return f"{value:.{len(like[:-1].partition('.')[2])}f}{like[-1]}"


@pytest.mark.parametrize("size", lm.SIZES)
def test_a_size_is_as_large_as_it_says(size: str) -> None:
    count = ladder.parameters(size)
    assert rounded(count.active_non_embedding, ACTIVE[size]) == ACTIVE[size]
    words = " ".join(lm.__doc__.split())
    assert f"{size} {ACTIVE[size]}" in words or f"{size} ({ACTIVE[size]}" in words
    if size in ("16b", "112b", "671b"):
        assert rounded(count.total, size.upper()) == size.upper()
    elif size in ("1b", "3b"):
        assert rounded(count.active_non_embedding, size.upper()) == size.upper()


@pytest.mark.parametrize("size", [size for size in lm.SIZES if size != "nano"])
def test_a_run_is_twenty_tokens_per_active_parameter(size: str) -> None:
    made = ladder.load(size)
    tokens = made.total_steps * made.tokens_per_step
    assert tokens / ladder.parameters(size).active_non_embedding == pytest.approx(20, rel=0.05)


@pytest.mark.parametrize("size", ["large", "16b", "671b"])
def test_init_would_make_what_is_counted(size: str) -> None:
    model = Transformer(ladder.load(size).model)
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    found = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert found == ladder.parameters(size).everything


def test_the_largest_has_the_shape_of_deepseek_v3() -> None:
    model = ladder.load("671b").model
    assert isinstance(model.attention, LatentAttentionConfig)
    assert (model.num_layers, model.first_dense, model.d_model) == (61, 3, 7168)
    assert (model.attention.q_lora_rank, model.attention.kv_lora_rank) == (1536, 512)


@pytest.mark.parametrize("size", lm.SIZES)
def test_the_device_changes_the_back_end_alone(size: str) -> None:
    anywhere, tpu = (lm.get_config(f"size={size},device={name}") for name in ("any", "tpu"))
    assert (anywhere.model.attention.backend, tpu.model.attention.backend) == ("einsum", "splash")
    tpu.model.attention.backend = "einsum"
    assert anywhere == tpu


@pytest.mark.parametrize("size", ["base", "671b"])
def test_quick_keeps_the_kind_of_everything(size: str) -> None:
    full, quick = ladder.load(size).model, ladder.load(size, quick="true").model
    assert type(quick.attention) is type(full.attention)
    assert full.moe is not None and quick.moe is not None
    assert (quick.moe.experts, quick.moe.router) == (full.moe.experts, full.moe.router)
    assert bool(quick.moe.shared_width) == bool(full.moe.shared_width)
    assert [moe is None for moe in quick.plan()] == [
        moe is None for moe in full.plan()[: quick.num_layers]
    ]


def test_the_document_has_the_ladder() -> None:
    """To renew it: `PYTHONPATH=.:tests/models python -m ladder`."""
    assert ladder.table() in DOCUMENT.read_text()
