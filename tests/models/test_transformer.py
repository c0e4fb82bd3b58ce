"""The model as a whole: scan, remat, padding, packing and micro-batches change no number."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_samples import (
    ADDITIVE,
    EQUAL,
    KINDS,
    UNEQUAL,
    VOCAB,
    assert_trees_close,
    loss_and_gradient,
    make,
    packed,
    random_params,
)

from moejax.models import Transformer
from moejax.models.attention import AttentionConfig
from moejax.models.block import Tokens
from moejax.models.remat import POLICIES
from moejax.routing.contract import ROUTERS
from moejax.routing.linear import LinearRouter
from moejax.routing.routers import TopK

LENGTH = 9
MIXED = {
    "moe": KINDS["top_p"],
    "moe_variants": {"other": dataclasses.replace(UNEQUAL, losses=ADDITIVE, shared_width=4)},
    "layers": ("moe", "other"),
}
"""A top-p layer and one of unequal experts; every loss is a mean over tokens."""


@pytest.fixture(scope="module")
def mixed():
    return make(**MIXED)


@pytest.fixture(scope="module")
def mixed_step(mixed):
    return loss_and_gradient(mixed)


@pytest.fixture(scope="module")
def mixed_params(mixed):
    return random_params(mixed)


@pytest.fixture(scope="module")
def rows():
    """Four rows: two documents, one document, half padding, two documents and padding."""
    return packed([(4, 5), (9,), (4,), (2, 5)], LENGTH)


def take(batch, which):
    return {name: array[which] for name, array in batch.items()}


@pytest.fixture(scope="module")
def plain_repeated(rows):
    """Scanned, nothing recomputed: what unrolling and rematerialising are compared with."""
    model = make(KINDS["top_p"])
    params, state = random_params(model)
    batch = take(rows, slice(2))
    result = loss_and_gradient(model)(params, state, batch, model.denominators(batch))
    return params, state, batch, result


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(change, marks=pytest.mark.slow) if change == {"remat": "dots"} else change
        for change in ({"scan": False}, *({"remat": name} for name in POLICIES if name != "none"))
    ],
    ids=str,
)
def test_unrolling_and_rematerialising_change_no_number(plain_repeated, changes):
    params, state, batch, want = plain_repeated
    model = make(KINDS["top_p"], **changes)
    got = loss_and_gradient(model)(params, state, batch, model.denominators(batch))
    assert_trees_close(got, want)


def test_padding_rows_change_no_loss_no_gradient_and_no_statistic(
    mixed, mixed_step, mixed_params, rows
):
    params, state = mixed_params
    compact = take(rows, slice(2))
    empty = {name: np.zeros((2, LENGTH), array.dtype) for name, array in rows.items()}
    garbage = packed([(), ()], LENGTH, seed=5)
    want = mixed_step(params, state, compact, mixed.denominators(compact))
    for filler in (empty, garbage):
        padded = {name: np.concatenate([compact[name], filler[name]]) for name in rows}
        denominators = mixed.denominators(padded)
        assert_trees_close(denominators, mixed.denominators(compact), tolerance=0, floor=0)
        assert_trees_close(mixed_step(params, state, padded, denominators), want)


def test_what_stands_in_padding_places_changes_nothing_at_all(
    mixed, mixed_step, mixed_params, rows, rng
):
    params, state = mixed_params
    padding = rows["segment_ids"] == 0
    assert padding.any()
    other = dict(rows)
    for name in ("tokens", "targets"):
        other[name] = np.where(padding, (rows[name] + 7) % VOCAB, rows[name])
    other["positions"] = np.where(padding, 3, rows["positions"])
    denominators = mixed.denominators(rows)
    want = mixed_step(params, state, rows, denominators)
    got = mixed_step(params, state, other, denominators)
    assert_trees_close(got, want, tolerance=1e-6)


def test_micro_batches_add_up_to_the_whole_batch(mixed, mixed_step, mixed_params, rows):
    params, state = mixed_params
    denominators = mixed.denominators(rows)
    want = mixed_step(params, state, rows, denominators)
    parts = [
        mixed_step(params, state, take(rows, part), denominators)
        for part in (slice(0, 2), slice(2, 4))  # 18 and 11 tokens
    ]
    assert_trees_close(jax.tree.map(jnp.add, *parts), want)
    (_, out), _ = want
    assert set(out["aux"]) == {"entropy", "z_loss"}
    assert float(out["aux"]["entropy"]) == pytest.approx(0.1 * float(out["aux_raw"]["entropy"]))


def test_balance_losses_have_the_scope_of_the_micro_batch(rows):
    model = make(EQUAL)
    params, state = random_params(model)
    denominators = model.denominators(rows)
    f = jax.jit(
        lambda batch: model.loss(params, state, batch, None, denominators=denominators, train=True)[
            1
        ]
    )
    whole, parts = f(rows), [f(take(rows, part)) for part in (slice(0, 2), slice(2, 4))]
    losses = EQUAL.losses
    for out, tokens in ((whole, 29), (parts[0], 18), (parts[1], 11)):
        value = losses.values(out["layers"][0], model.groups[0].widths)["load_balance"]
        np.testing.assert_allclose(out["aux_raw"]["load_balance"], value * tokens / 29, rtol=1e-5)
        np.testing.assert_allclose(
            out["aux"]["load_balance"], 0.01 * out["aux_raw"]["load_balance"], rtol=1e-6
        )
    added = sum(float(part["aux_raw"]["load_balance"]) for part in parts)
    assert added != pytest.approx(float(whole["aux_raw"]["load_balance"]), rel=1e-4)


@pytest.mark.parametrize("kind", ["dense", "top_k"])
def test_documents_packed_into_one_row_are_two_rows(kind, rng):
    model = make(KINDS[kind])
    params, state = random_params(model)
    first, second = rng.integers(0, VOCAB, 4), rng.integers(0, VOCAB, 5)
    together = packed([(4, 5), ()], LENGTH, tokens=[first, second])
    apart = packed([(4,), (5,)], LENGTH, seed=3, tokens=[first, second])

    @jax.jit
    def nll(batch):
        denominators = model.denominators(batch)
        loss, out = model.loss(
            params, state, batch, None, denominators=denominators, train=False, trace=True
        )
        return loss, out["trace"]["nll_BS"]

    loss, nll_BS = nll(together)
    loss_apart, apart_BS = nll(apart)
    # The last target of a document lies in the next one: it has no loss and is not compared.
    np.testing.assert_allclose(nll_BS[0, :3], apart_BS[0, :3], atol=1e-5)
    np.testing.assert_allclose(nll_BS[0, 4:8], apart_BS[1, :4], atol=1e-5)
    np.testing.assert_allclose(loss, loss_apart, rtol=1e-5)


def of_kinds(*kinds, **changes):
    """A model with a layer of each kind."""
    variants = {name: moe for name, moe in KINDS.items() if moe}
    return make(moe_variants=variants, layers=kinds, num_layers=len(kinds), **changes)


@pytest.mark.parametrize("layout", ["scanned", "unrolled"])
def test_decoding_token_by_token_gives_the_full_forward(layout):
    if layout == "scanned":
        model = of_kinds("top_k", "hetero_top_p", "top_k", "hetero_top_p")
        reference = Transformer(dataclasses.replace(model.config, scan=False))
    else:
        attention = AttentionConfig(heads=2, kv_heads=1, qk_norm=True)
        kinds = ("dense", "top_p", "hetero_top_k")
        model = of_kinds(*kinds, scan=False, tied_embeddings=True, attention=attention)
        reference = model
    params, state = random_params(model)
    batch = packed([(9,), (3, 4)], LENGTH)

    def pieces(part):
        names = ("tokens", "positions", "segment_ids")
        return Tokens(*(jnp.asarray(batch[name][:, part]) for name in names))

    @jax.jit
    def full(tokens):
        x_BSD, _ = reference.hidden(params, state, tokens)
        return jnp.einsum("bsd,vd->bsv", x_BSD, reference.head_table(params))

    step = jax.jit(lambda tokens, caches: model.decode(params, state, tokens, caches))
    want = full(pieces(slice(None)))
    caches = model.empty_caches(2, LENGTH + 1)
    logits, start = [], 0
    for size in (5, 1, 1, 1, 1):
        part_BSV, caches = step(pieces(slice(start, start + size)), caches)
        assert part_BSV.dtype == jnp.float32
        logits.append(part_BSV)
        start += size
    valid = batch["segment_ids"] > 0
    np.testing.assert_allclose(np.concatenate(logits, 1)[valid], np.asarray(want)[valid], atol=2e-5)


def test_nothing_later_reaches_an_earlier_token():
    model = make(KINDS["hetero_top_p"])
    params, state = random_params(model)
    batch = packed([(LENGTH,)], LENGTH)

    @jax.jit
    def nll(tokens):
        changed = batch | {"tokens": tokens}
        _, out = model.loss(
            params, state, changed, None,
            denominators=model.denominators(batch), train=False, trace=True,
        )  # fmt: skip
        return out["trace"]["nll_BS"]

    before = np.asarray(nll(batch["tokens"]))
    for place in range(1, LENGTH):
        tokens = batch["tokens"].copy()
        tokens[0, place] = (tokens[0, place] + 1) % VOCAB
        after = np.asarray(nll(tokens))
        np.testing.assert_allclose(after[0, :place], before[0, :place], atol=1e-6)
        assert np.abs(after[0, place] - before[0, place]) > 1e-6


@ROUTERS.register("counting_for_test_transformer")
@dataclasses.dataclass(frozen=True)
class Counting(TopK):
    """Top-k that remembers its layer's load, and passes a number on to the next layer."""

    carries = True

    def init_state(self, num_experts):
        return {"load_E": jnp.zeros(num_experts), "steps": jnp.zeros(())}

    def update_state(self, state, stats):
        load_LE = stats.count_E / stats.tokens[:, None]
        return {"load_E": state["load_E"] + load_LE, "steps": state["steps"] + 1}

    def __call__(self, x_TD, inputs, params, state):
        routing, _ = LinearRouter.__call__(self, x_TD, inputs, params, state)
        # The carry becomes part of the z-loss' logits, where the test can see it.
        routing = dataclasses.replace(routing, logits_TE=inputs.carry_TE)
        return routing, inputs.carry_TE + 1.0


@ROUTERS.register("counting_alone_for_test_transformer")
@dataclasses.dataclass(frozen=True)
class CountingAlone(Counting):
    """Without the carry, which ties layers to one number of experts."""

    carries = False


COUNTING = dataclasses.replace(EQUAL, router=Counting(k=2), losses=ADDITIVE)


def test_a_carry_passes_from_layer_to_layer_of_a_segment():
    model = make(COUNTING, layers=("moe", "moe", "dense", "moe"), num_layers=4)
    params, state = random_params(model)
    batch = packed([(5, 4), (7,)], LENGTH)

    @jax.jit
    def step(state):
        denominators = model.denominators(batch)
        _, out = model.loss(params, state, batch, None, denominators=denominators, train=True)
        return out, model.update_router_state(state, out)

    out, new = step(jax.tree.map(jnp.zeros_like, state))
    # logsumexp of four equal carries c is c + log 4; carries start anew in the last segment.
    carry_L = np.sqrt(np.asarray(out["layers"][0].z) / 16) - np.log(4)
    np.testing.assert_allclose(carry_L, [0, 1, 0], atol=1e-5)
    load_LE = np.asarray(out["layers"][0].count_E) / 16
    for segment, rows in (("0", slice(0, 2)), ("2", slice(2, 3))):
        updated = new["segments"][segment]["0"]["ffn"]["router_state"]
        np.testing.assert_allclose(updated["load_E"], load_LE[rows])
        np.testing.assert_allclose(updated["steps"], 1)


def test_every_layer_gets_its_own_router_state_back():
    layers = ("moe", "other", "moe", "other", "dense", "moe")
    moe = dataclasses.replace(COUNTING, router=CountingAlone(k=2))
    other = dataclasses.replace(moe, experts=6)
    model = make(moe, moe_variants={"other": other}, layers=layers, num_layers=6)
    assert [group.layers for group in model.groups] == [(0, 2, 5), (1, 3)]
    _, state = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(model.init, jax.random.key(0))
    )

    @dataclasses.dataclass
    class Stats:
        count_E: jax.Array
        tokens: jax.Array

    stats = tuple(
        # Layer 5 of 4 experts counts 5, 5, 5, 5 over one token.
        Stats(jnp.outer(jnp.asarray(group.layers), jnp.ones(len(group.widths))), jnp.ones(1))
        for group in model.groups
    )
    new = model.update_router_state(state, {"layers": stats})
    assert jax.tree.structure(new) == jax.tree.structure(state)
    for segment, position, of_layers in (("0", "0", (0, 2)), ("0", "1", (1, 3)), ("2", "0", (5,))):
        load_LE = new["segments"][segment][position]["ffn"]["router_state"]["load_E"]
        np.testing.assert_array_equal(load_LE.min(1), of_layers)
        np.testing.assert_array_equal(load_LE.max(1), of_layers)
    assert not np.asarray(state["segments"]["2"]["0"]["ffn"]["router_state"]["load_E"]).any()


def test_bfloat16_is_finite_and_close_to_float32(mixed, mixed_step, mixed_params, rows):
    params, state = mixed_params
    batch = take(rows, slice(2))
    denominators = mixed.denominators(batch)
    coarse = Transformer(dataclasses.replace(mixed.config, compute_dtype="bfloat16"))
    want = mixed_step(params, state, batch, denominators)
    got = loss_and_gradient(coarse)(params, state, batch, denominators)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))
    assert float(got[0][0]) == pytest.approx(float(want[0][0]), rel=0.02)
    assert float(got[0][0]) != float(want[0][0])
    flat = [np.concatenate([np.ravel(g) for g in jax.tree.leaves(r[1])]) for r in (got, want)]
    assert np.corrcoef(*flat)[0, 1] > 0.99


def test_a_batch_of_padding_has_no_loss_and_no_gradient(mixed, mixed_step, mixed_params):
    params, state = mixed_params
    batch = packed([(), ()], LENGTH)
    denominators = mixed.denominators(batch)
    assert {name: float(value) for name, value in denominators.items()} == {
        "targets": 1.0,
        "tokens": 1.0,
    }
    (loss, out), gradient = mixed_step(params, state, batch, denominators)
    assert float(loss) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out))
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(leaf, 0)
