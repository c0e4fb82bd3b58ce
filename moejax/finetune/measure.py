"""A checkpoint run over a text: the scores of its experts, and what else ESFT is analysed by."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from numpy.typing import NDArray

from moejax.config import ConfigError
from moejax.experts.config import MoeConfig
from moejax.experts.layer import MoeOutput
from moejax.finetune.sampling import Documents, Sampling, batches, text_hash, windows
from moejax.finetune.scores import Origin, Scores, rounded
from moejax.finetune.selection import trainable_experts
from moejax.models import Transformer
from moejax.models.block import Tokens
from moejax.probe.opened import OpenedRun, Restored, Say
from moejax.routing.contract import RouterInputs
from moejax.sharding import Rows

Tree = dict[str, Any]
Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class LayerUse:
    """How a text used one MoE layer. `J` samples, `E` its experts, `N` those with weights.

    Attributes:
      experts: ids of those with weights.
      gate_JE, ratio_JE: float64, eq. 6 and 7 of each sample (before the mean over samples).
      pairs_NN: tokens that used both; on the diagonal, the one.
      slots: mean experts that a token used, those without weights included.
      chosen: ids and gates of the filled slots of each sample, token by token; empty unless asked
        for.
    """

    experts: tuple[int, ...]
    gate_JE: Floats
    ratio_JE: Floats
    pairs_NN: Floats
    slots: float
    chosen: tuple[tuple[NDArray[np.int64], Floats], ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """Scores of a checkpoint on a text, and by layer what they were made of."""

    scores: Scores
    layers: Mapping[int, LayerUse]


def measure(
    run: OpenedRun,
    restored: Restored,
    documents: Documents,
    sampling: Sampling | None = None,
    base_hash: str = "",
    say: Say = print,
    each: bool = False,
) -> Measured:
    """Scores all experts of a checkpoint.

    Args:
      run: whose model it is.
      restored: of one step.
      documents: the text.
      sampling: how much of it; bounded by `data.seq_len` of the run.
      base_hash: of the parameters, for the record.
      say: told where the text was too short.
      each: also keep the gates of every token.

    Raises:
      ConfigError: the model has no MoE layer; an empty text; or gates that are not finite.
    """
    there = trainable_experts(run.model.config)
    if not there:
        raise ConfigError(
            f"{run.root}: the model is dense: it has no experts to score; nearest valid a run with "
            "model.moe"
        )
    sampling = (sampling or Sampling()).within(run.experiment.data.seq_len)
    found = windows(documents, sampling, say)
    length = max(sum(map(len, window)) for window in found)
    sums = _run(run, restored, found, length, each)
    tokens = sum(len(piece) for window in found for piece in window)
    layers = {}
    for layer, experts in there.items():
        seen = sums[layer]
        layers[layer] = LayerUse(
            experts,
            np.asarray(seen["gate_JE"][: len(found)], np.float64) / length,
            np.asarray(seen["ratio_JE"][: len(found)], np.float64) / length,
            seen["pairs_EE"][np.ix_(experts, experts)],
            float(seen["slots"]) / tokens,
            _chosen(seen, len(found), run.model.config.plan()[layer]) if each else (),
        )
    origin = Origin(
        base_hash=base_hash,
        run=str(run.root),
        step=restored.step,
        task=documents.spec,
        tokens=tokens,
        samples=len(found),
        length=length,
        text_hash=text_hash(found),
        seed=sampling.seed,
        experts={layer: len(experts) for layer, experts in there.items()},
    )
    return Measured(scores_of(layers, slice(None), origin), layers)


def scores_of(
    layers: Mapping[int, LayerUse], samples: slice, origin: Origin | None = None
) -> Scores:
    """Scores of some of the samples."""

    def table(name: str) -> dict[int, dict[int, float]]:
        found = {}
        for layer, use in layers.items():
            try:
                found[layer] = rounded(getattr(use, name)[samples].mean(axis=0), use.experts)
            except ConfigError as error:
                raise ConfigError(f"layer {layer}: {error}") from error
        return found

    return Scores(table("ratio_JE"), table("gate_JE"), origin or Origin())


@functools.lru_cache(maxsize=4)  # several texts, one compilation
def make_program(
    model: Transformer, each: bool = False
) -> Callable[[Tree, Tree, Tree], tuple[Tree, ...]]:
    """A compiled `(params, router_state, batch of [B, S]) -> sums by group of layers`.

    Layers `L` of a group in front: `gate_LJE`, `ratio_LJE` (sums over the tokens of each row),
    `pairs_LEE` (tokens that used both), `slots_L` (filled slots). Routers are as in evaluation, and
    what they chose counts after capacity: an expert that turned a token away was of no use to it.
    With `each` also `expert_LJTK` and `weight_LJTK`.
    """

    def forward(params: Tree, router_state: Tree, batch: Tree) -> tuple[Tree, ...]:
        rows = batch["tokens"].shape[0]

        def use(out: MoeOutput, inputs: RouterInputs) -> Tree:
            del inputs
            gate_TE = out.kept.combine_TE().astype(jnp.float32)
            used_TE = (gate_TE > 0).astype(jnp.float32)
            slots_T = out.kept.active_T
            ratio_TE = used_TE / jnp.maximum(slots_T, 1)[:, None]
            found = {
                "gate_JE": gate_TE.reshape(rows, -1, gate_TE.shape[-1]).sum(1),
                "ratio_JE": ratio_TE.reshape(rows, -1, gate_TE.shape[-1]).sum(1),
                "pairs_EE": jnp.einsum(
                    "ti,tj->ij", used_TE, used_TE, precision=jax.lax.Precision.HIGHEST
                ),
                "slots": slots_T.sum(),
            }
            if each:
                slots = out.kept.expert_TK.shape[-1]
                found["expert_JTK"] = out.kept.expert_TK.reshape(rows, -1, slots)
                found["weight_JTK"] = out.kept.weight_TK.reshape(rows, -1, slots)
            return found

        tokens = Tokens(batch["tokens"], batch["positions"], batch["segment_ids"], model.mesh)
        _, outs = model.hidden(
            params, router_state, tokens, jax.random.key(0), train=False, observe=use
        )
        return model.by_group(outs, "observed")

    if model.mesh is None:
        return jax.jit(forward)
    return jax.jit(forward, out_shardings=NamedSharding(model.mesh, PartitionSpec()))


def _run(
    run: OpenedRun, restored: Restored, found: list[Any], length: int, each: bool
) -> dict[int, Tree]:
    """Sums by layer over all batches, which hold no more tokens than those of the evaluation."""
    experiment, model = run.experiment, run.model
    devices = 1 if run.mesh is None else run.mesh.size
    room = experiment.evaluation.batch_size * experiment.data.seq_len // length
    rows = math.ceil(min(max(room, 1), len(found)) / devices) * devices
    place = Rows(run.mesh, rows)
    program = make_program(model, each)
    sums: dict[int, Tree] = {}
    for batch in batches(found, rows, length, run.dataset.tokenizer.pad_id):
        inputs = place.put_whole(batch)
        seen = jax.device_get(program(restored.params, restored.router_state, inputs))
        for group, one in zip(model.groups, seen, strict=True):
            for row, layer in enumerate(group.layers):
                own = {name: np.asarray(array[row], np.float64) for name, array in one.items()}
                sums[layer] = own if layer not in sums else _joined(sums[layer], own)
    return sums


def _joined(before: Tree, own: Tree) -> Tree:
    """Samples one after another; counts added."""
    return {
        name: np.concatenate([before[name], array]) if "J" in name else before[name] + array
        for name, array in own.items()
    }


def _chosen(seen: Tree, samples: int, moe: MoeConfig | None) -> tuple[tuple[Any, Floats], ...]:
    """Filled slots of each sample, in the order of its tokens."""
    assert moe is not None
    found = []
    for expert_TK, weight_TK in zip(seen["expert_JTK"], seen["weight_JTK"], strict=True):
        filled_TK = expert_TK < moe.num_experts
        found.append((expert_TK[filled_TK].astype(np.int64), weight_TK[filled_TK]))
    return tuple(found[:samples])
