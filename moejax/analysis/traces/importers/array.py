"""`(T, L, k)` arrays of expert ids, as vLLM and SGLang return them for a request.

Both give one array per request: prompt and answer, every layer of the model, the `k` experts of
each token. Layers without a router are rows of zeros there; they are left out here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moejax.analysis import arrays, text
from moejax.analysis.arrays import ArrayFileError
from moejax.analysis.traces.importers.table import Imported, to_trace
from moejax.analysis.traces.trace import COLUMNS
from moejax.config.knobs import ConfigError

EXPERTS = ("routed_experts", "experts", "topk_ids")
WEIGHTS = ("weights", "topk_weights")
_PER_TOKEN = tuple(name for name, column in COLUMNS.items() if column.axes == "T")
_FIELDS = {
    **{name: arrays.Field("TLK", "iu", required=False) for name in EXPERTS},
    **{name: arrays.Field("TLK", "f", required=False) for name in WEIGHTS},
    **{name: arrays.Field("T", required=False) for name in _PER_TOKEN},
}


def import_arrays(
    files: Sequence[str | Path], *, experts: int | None = None, step: int = 0
) -> Imported:
    """Reads one array per request and joins them along the tokens.

    A `.npy` file is the array of ids. A `.npz` file holds it as `routed_experts`, `experts` or
    `topk_ids`, optionally `weights` or `topk_weights` of the same shape, and any array `[T]` of a
    trace under its own name (`token_T`, `domain_T`, `loss_T`, ...). Each file is a sequence of its
    own, unless it has a `sequence_T`.

    Args:
      files: in the order of the sequences.
      experts: experts of a layer; None: one more than the highest id that occurs.
      step: which checkpoint of the model this is.

    Raises:
      ConfigError: one line: no file, one that cannot be read, shapes or arrays that differ.
    """
    if not files:
        raise ConfigError("no file to import")
    parts = [_read(Path(file)) for file in files]
    first = parts[0]
    for file, part in zip(files, parts, strict=True):
        name = text.clean(Path(file).name)
        if part.keys() != first.keys():
            one = sorted(part.keys() ^ first.keys())[0]
            raise ConfigError(f"{name}: {one!r} is in some of the files only")
        if part["experts"].shape[1:] != first["experts"].shape[1:]:
            raise ConfigError(
                f"{name}: (layers, k) is {part['experts'].shape[1:]}, but "
                f"{first['experts'].shape[1:]} in {text.clean(Path(files[0]).name)}"
            )
    joined = {name: np.concatenate([part[name] for part in parts]) for name in first}
    if "sequence_T" not in joined:
        sizes = [len(part["experts"]) for part in parts]
        joined["sequence_T"] = np.repeat(np.arange(len(parts)), sizes)
    expert_LTK = joined.pop("experts").swapaxes(0, 1)
    kept = [layer for layer, expert_TK in enumerate(expert_LTK) if not _placeholder(expert_TK)]
    if "weights" in joined:
        joined["weight_LTK"] = joined.pop("weights").swapaxes(0, 1)[kept]
    where = text.clean(Path(files[0]).name) + (f" and {len(files) - 1} more" if files[1:] else "")
    trace = to_trace(
        expert_LTK[kept], kept, experts=experts, columns=joined, step=step, where=where
    )
    left_out = sorted(set(range(len(expert_LTK))) - set(kept))
    notes = [f"layers without a router (all zeros) are left out: {left_out}"] if left_out else []
    if experts is None:
        notes.append(f"{trace.num_experts} experts: one more than the highest id; --experts=E says")
    names = [text.clean(Path(file).name) for file in files]
    return Imported(
        trace,
        tuple(f"layer {layer}" for layer in kept),
        {"format": "array", "files": names[:1000], "num_files": len(names)},
        tuple(notes),
    )


def _read(file: Path) -> dict[str, NDArray[Any]]:
    """`experts`, perhaps `weights`, and arrays `[T]`."""
    try:
        if file.suffix != ".npz":
            return {"experts": _three_axes(arrays.read_array(file), file)}
        found = arrays.read_arrays(file, _FIELDS)
        ids = [name for name in EXPERTS if name in found]
        if len(ids) != 1:
            names = text.clean(", ".join(arrays.array_names(file)))
            raise ConfigError(
                f"{text.clean(file.name)}: needs one array of ids named {', '.join(EXPERTS)}; it "
                f"has: {names}"
            )
        part = {"experts": found.pop(ids[0])}
        for name in WEIGHTS:
            if name in found:
                part["weights"] = found.pop(name)
        return part | found
    except ArrayFileError as error:
        raise ConfigError(text.clean(str(error))) from error


def _three_axes(table: NDArray[Any], file: Path) -> NDArray[Any]:
    if table.ndim != 3 or table.dtype.kind not in "iu":
        raise ConfigError(
            f"{text.clean(file.name)}: {table.dtype} of shape {table.shape}; expected integers of "
            "shape (tokens, layers, k)"
        )
    return table


def _placeholder(expert_TK: NDArray[Any]) -> bool:
    """Whether no router can have written this: the same expert in all slots of all tokens."""
    return expert_TK.shape[1] > 1 and len(expert_TK) > 0 and not expert_TK.any()
