"""Export: our parameters as a directory that transformers opens."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moejax.config import ConfigError, diff, format_diff, to_plain, write_bytes_atomic
from moejax.experts.config import MoeConfig
from moejax.interop.families import FAMILIES, Family, Layout
from moejax.interop.hf_config import HfConfig
from moejax.interop.importing import Progress, check_coverage, silent
from moejax.interop.links import ROUTER_STATE, Link, Tree
from moejax.interop.safetensors import DTYPES, NAMES, write_safetensors
from moejax.interop.source import CONFIG, INDEX, WEIGHTS, index_json
from moejax.models.attention import AttentionConfig, LatentAttentionConfig
from moejax.models.config import ModelConfig
from moejax.routing.linear import LinearRouter
from moejax.routing.routers import SigmoidBias, TopK

SHARD_BYTES = 5 << 30
EXPORT_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
METADATA = {"format": "pt"}
"""transformers refuses a file without it. It says nothing about the bytes."""


def essence(model: ModelConfig) -> dict[str, Any]:
    """What a model computes when it is not training, without what only says how: two models with
    the same essence and the same parameters give the same logits."""
    return {
        "vocab_size": model.vocab_size,
        "d_model": model.d_model,
        "max_seq_len": model.max_seq_len,
        "norm_eps": model.norm_eps,
        "tied_embeddings": model.tied_embeddings,
        "attention": _attention(model),
        "layers": [
            {"ffn_width": model.ffn_width, "activation": model.activation}
            if moe is None
            else _moe(moe)
            for moe in model.plan()
        ],
    }


def _attention(model: ModelConfig) -> dict[str, Any]:
    attention = model.attention.resolve(model.d_model)
    record: dict[str, Any] = {**to_plain(attention), "kind": type(attention).__name__}
    for key in ("name", "backend"):
        record.pop(key, None)
    for key in ("yarn", "llama3"):
        if key in record and record[key]["factor"] == 1:
            record[key] = None
    if isinstance(attention, AttentionConfig) and not attention.qk_norm:
        record["qk_norm_over"] = None
    if isinstance(attention, LatentAttentionConfig):
        record["latent_norm_eps"] = attention.latent_norm_eps or model.norm_eps
    return record


def _moe(moe: MoeConfig) -> dict[str, Any]:
    router = moe.router
    if not isinstance(router, LinearRouter):
        knobs = to_plain(router)
    else:
        still = {"init_std": 0.02, "jitter": 0.0}
        if isinstance(router, SigmoidBias):
            still["rate"] = 0.0
        knobs = to_plain(dataclasses.replace(router, **still))
    if isinstance(router, TopK | SigmoidBias) and router.groups_kept >= router.groups:
        knobs["groups"] = knobs["groups_kept"] = 1
    return {
        "widths": list(moe.spec.widths),
        "router": {**knobs, "kind": type(router).__name__},
        "shared_width": moe.shared_width,
        "shared_gate": moe.shared_gate,
        "zero_compute": to_plain(moe.zero_compute),
        "activation": moe.activation,
        "bounded": moe.capacity.expert_capacity(1, 1.0, moe.spec.widths, train=False) is not None
        or moe.capacity.row_budget > 0,
    }


def write_record(model: ModelConfig, family: Family) -> dict[str, Any]:
    """The config.json of a model in a family.

    Raises:
      ConfigError: the family cannot express it; the message says which knob, and for experts of
        different widths what exporting them padded would cost.
    """
    _refuse_what_nobody_has(model)
    record = family.write_config(model)
    record |= {"model_type": family.model_type, "architectures": [family.architecture]}
    back = family.read_config(HfConfig(record, family.model_type), None)
    wanted, got = essence(model), essence(back)
    if wanted != got:
        rows = diff(wanted, got)
        raise ConfigError(
            f"a {family.model_type} checkpoint cannot say all of this model (model -> what it "
            f"would be): {'; '.join(' '.join(format_diff([row]).split()) for row in rows[:4])}"
        )
    return record


def choose_family(model: ModelConfig) -> Family:
    """The family that expresses a model, for one that was trained here.

    Raises:
      ConfigError: there is none; the message has what each lacks.
    """
    reasons = []
    _refuse_what_nobody_has(model)
    for family in sorted(FAMILIES.values(), key=lambda one: not one.native):
        try:
            write_record(model, family)
        except ConfigError as error:
            reasons.append(
                f"{family.model_type}: {str(error).partition('would be): ')[2] or error}"
            )
        else:
            return family
    raise ConfigError("no family of Hugging Face checkpoints is this model. " + " | ".join(reasons))


def _refuse_what_nobody_has(model: ModelConfig) -> None:
    for moe in dict.fromkeys(model.plan()):
        if moe is None:
            continue
        name = getattr(moe.router, "registered_name", type(moe.router).__name__)
        if not isinstance(moe.router, TopK | SigmoidBias):
            hint = {
                "top_p": "a number of experts that differs by token",
                "remoe": "a number of experts that differs by token",
                "expert_choice": "experts that choose tokens",
            }.get(name, "this rule")
            raise ConfigError(
                f"model.moe.router.name={name}: no family of Hugging Face checkpoints has {hint}, "
                "so the model cannot be exported; a model fine-tuned with top_k can"
            )
        if moe.zero_compute.total:
            raise ConfigError(
                f"model.moe.zero_compute: {moe.zero_compute.total} experts that compute nothing: "
                "no family of Hugging Face checkpoints has them"
            )
        widths = moe.spec.widths
        if len(set(widths)) > 1:
            before, after = sum(widths), max(widths) * len(widths)
            raise ConfigError(
                f"model.moe.widths: experts of {len(set(widths))} widths, {min(widths)} to "
                f"{max(widths)}: no family of Hugging Face checkpoints has them. --pad_experts "
                f"exports the same function with every expert padded by zeros to {max(widths)}: "
                f"{after / before:.2f} times the expert parameters, and every slot costs as much "
                "as the widest expert's"
            )


@dataclasses.dataclass(frozen=True)
class Export:
    """What is to be written.

    Attributes:
      record: config.json.
      links: the tensors in order.
      dtypes: the dtype of each by its name in safetensors.
      carried: further files by name.
    """

    record: dict[str, Any]
    links: Sequence[Link]
    dtypes: Mapping[str, str]
    carried: Mapping[str, bytes]


def plan_export(
    model: ModelConfig,
    family: Family,
    *,
    layout: Layout | None = None,
    dtype: str = "",
    dtypes: Mapping[str, str] | None = None,
    original: Mapping[str, Any] | None = None,
    ignore: Sequence[str] = (),
    carried: Mapping[str, bytes] | None = None,
) -> Export:
    """Decides what an export looks like; writes nothing.

    Args:
      layout: of the file; None: one tensor per expert matrix, the family's own rotary order.
      dtype: float32, bfloat16 or float16 for all tensors but the selection's biases, which stay
        float32; "": each as in `dtypes`, or else as we store it.
      dtypes: by tensor, from an import.
      original: the config.json that the model came with. Where it still says what the model is, it
        is written again as it was; else it is changed where it must be.
      ignore: keys of it that were declared harmless.
      carried: files to write as they are.

    Raises:
      ConfigError: the family cannot express the model.
    """
    record = write_record(model, family)
    layout = layout or Layout(interleaved=family.interleaved)
    if original is not None:
        record = _update(original, record, model, family, ignore)
    links = list(family.links(model, layout))
    chosen = {}
    for link in links:
        if dtype:
            still = link.targets[0].path[0] == ROUTER_STATE
            chosen[link.name] = "F32" if still else EXPORT_DTYPES[dtype]
        else:
            chosen[link.name] = (dtypes or {}).get(link.name, NAMES[np.dtype(model.dtypes[0])])
    if original is None or dtype:
        names = {name: dtype for dtype, name in EXPORT_DTYPES.items()}
        record["dtype"] = names[chosen["model.embed_tokens.weight"]]
        record.pop("torch_dtype", None)
    return Export(record, links, chosen, dict(carried or {}))


def _update(
    original: Mapping[str, Any],
    record: dict[str, Any],
    model: ModelConfig,
    family: Family,
    ignore: Sequence[str],
) -> dict[str, Any]:
    def says_the_model(config: Mapping[str, Any]) -> bool:
        try:
            known = family.read_config(HfConfig(config, ignore=ignore), model.max_seq_len)
        except ConfigError:
            return False
        return essence(known) == essence(model) and config.get("model_type") == family.model_type

    if says_the_model(original):
        return dict(original)
    # Keys of the older style would contradict those that are written, and so may lists by layer.
    stale = ("rope_theta", "rope_scaling", "layer_types", "num_local_experts")
    updated = {k: v for k, v in original.items() if k not in stale} | record
    return updated if says_the_model(updated) else record


def export(
    target: Path,
    plan: Export,
    tree: Tree,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = silent,
) -> list[str]:
    """Writes a directory: weights in shards, index, config.json and what is carried.

    One tensor at a time is copied; the rest stays where `tree` has it. The config is written last:
    a directory without one is unfinished.

    Args:
      target: the directory; made if absent, must be empty.
      tree: `{params, router_state}`, NumPy or JAX arrays.
      shard_bytes: most bytes of tensors in one file, unless one tensor alone has more.

    Returns:
      Names of the files.

    Raises:
      ConfigError: the directory holds something; or the parameters are not those of the model.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target}: is not an empty directory")
    check_coverage(plan.links, tree, str(target))
    target.mkdir(parents=True, exist_ok=True)
    shards = _shards(plan, shard_bytes)
    total, done, places = 0, 0, {}
    for number, links in enumerate(shards, start=1):
        name = WEIGHTS
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        shapes = {link.name: (link.shape, plan.dtypes[link.name]) for link in links}
        write_safetensors(target / name, shapes, _arrays(links, plan, tree), METADATA)
        for link in links:
            total += math.prod(link.shape) * DTYPES[plan.dtypes[link.name]].itemsize
            places[link.name] = name
        done += len(links)
        progress("writing tensors", done, len(plan.links))
    if len(shards) > 1:
        write_bytes_atomic(target / INDEX, index_json(total, places))
    for name, content in plan.carried.items():
        write_bytes_atomic(target / name, content)
    text = json.dumps(plan.record, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_bytes_atomic(target / CONFIG, text.encode())
    return sorted(path.name for path in target.iterdir())


def _arrays(links: Sequence[Link], plan: Export, tree: Tree) -> Iterator[tuple[str, np.ndarray]]:
    for link in links:
        yield link.name, tensor(link, tree, plan.dtypes[link.name])


def tensor(link: Link, tree: Tree, dtype: str) -> np.ndarray:
    """A tensor of a file, made of our parameters."""
    joined = link.join(tuple(np.asarray(target.view(tree)) for target in link.targets))
    return np.ascontiguousarray(joined.astype(DTYPES[dtype], copy=False).reshape(link.shape))


def _shards(plan: Export, shard_bytes: int) -> list[list[Link]]:
    shards: list[list[Link]] = [[]]
    filled = 0
    for link in plan.links:
        size = math.prod(link.shape) * DTYPES[plan.dtypes[link.name]].itemsize
        if filled and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(link)
        filled += size
    return shards
