"""Files of the official repository (deepseek-ai/ESFT), read and written.

`summary.json` (scores), `expert_config` JSON (a selection) and `expert_weights_LAYER.txt` (gates of
every token). What is ours stands beside their keys under `moejax`, which their code does not read.
Files may come from anywhere: they are read without trust, and mistakes name file and place.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moejax.config import ConfigError, nearest, read_json, write_bytes_atomic
from moejax.finetune.scores import DIGITS, GATE, TOKEN, Origin, Scores
from moejax.finetune.selection import Selection

FORMAT_VERSION = 1
OURS = "moejax"
SUMMARY = "summary.json"
MAX_ID = 1 << 20
"""Layers and experts have lower numbers."""


def write_summary(path: Path, scores: Scores) -> None:
    """Writes both scores, layers and experts in ascending order (ties are broken by it)."""
    tables = {TOKEN: scores.token, GATE: scores.gate}
    record: dict[str, Any] = {
        f"{name}_scores": {
            str(layer): {str(expert): row[expert] for expert in sorted(row)}
            for layer, row in sorted(table.items())
        }
        for name, table in tables.items()
    }
    _write(path, record | {OURS: {"format_version": FORMAT_VERSION} | _plain(scores.origin)})


def read_summary(path: Path) -> Scores:
    """Reads scores, ours or theirs.

    Raises:
      ConfigError: the file is missing or no summary; a score is not finite or negative; or the two
        scores are of different experts.
    """
    record = _record(path, f"{TOKEN}_scores", f"{GATE}_scores")
    tables = {}
    for name in (TOKEN, GATE):
        key = f"{name}_scores"
        layers = _mapping(path, key, record[key])
        if not layers:
            raise ConfigError(f"{path}: {key} is empty: no MoE layer was scored")
        tables[name] = {
            _number(path, key, layer): {
                _number(path, f"{key}.{layer}", expert): _score(path, f"{key}.{layer}", expert, one)
                for expert, one in sorted(_mapping(path, f"{key}.{layer}", row).items(), key=_by_id)
            }
            for layer, row in sorted(layers.items(), key=_by_id)
        }
    for layer, row in tables[TOKEN].items():
        if tables[GATE].get(layer, {}).keys() != row.keys():
            raise ConfigError(f"{path}: layer {layer}: the two scores are of different experts")
    if tables[GATE].keys() != tables[TOKEN].keys():
        raise ConfigError(f"{path}: the two scores are of different layers")
    return Scores(tables[TOKEN], tables[GATE], _origin(path, record.get(OURS, {})))


def write_selection(path: Path, selection: Selection) -> None:
    """Writes an expert config; experts of a layer in their order."""
    record = {
        "experts": {
            str(layer): [int(one) for one in chosen]
            for layer, chosen in sorted(selection.experts.items())
        },
        "shared_experts": selection.shared_experts,
        "non_expert_modules": selection.non_expert_modules,
        OURS: {
            "format_version": FORMAT_VERSION,
            "score": selection.score,
            "p": selection.p,
            "random_seed": selection.seed,
        }
        | _plain(selection.origin),
    }
    _write(path, record)


def read_selection(path: Path) -> Selection:
    """Reads an expert config, ours or theirs; whether it fits a model, `check_selection` says.

    Raises:
      ConfigError: the file is missing or no expert config.
    """
    record = _record(path, "experts")
    experts = {}
    for layer, chosen in sorted(_mapping(path, "experts", record["experts"]).items(), key=_by_id):
        where = f"experts.{layer}"
        if not isinstance(chosen, list):
            raise ConfigError(f"{path}: {where} is not a list of expert ids")
        experts[_number(path, "experts", layer)] = tuple(
            _number(path, where, expert) for expert in chosen
        )
    flags = {}
    for name in ("shared_experts", "non_expert_modules"):
        value = record.get(name, False)
        if not isinstance(value, bool):
            raise ConfigError(f"{path}: {name}={value!r}: must be true or false")
        flags[name] = value
    ours = record.get(OURS, {})
    origin = _origin(path, ours)
    seed = ours.get("random_seed")
    return Selection(
        experts,
        **flags,
        origin=origin,
        score=str(ours.get("score", "")),
        p=_float(ours.get("p", 0.0)),
        seed=seed if isinstance(seed, int) else None,
    )


def write_expert_weights(
    path: Path, rows: Iterable[tuple[NDArray[np.integer], NDArray[np.floating]]]
) -> None:
    """Writes `expert_weights_LAYER.txt`: a line for each sample, ids of all its slots separated by
    tabs, two tabs, their gates with 4 decimals."""
    lines = []
    for ids, gates in rows:
        left = "\t".join(str(int(one)) for one in ids)
        right = "\t".join(f"{round(float(gate), DIGITS)}" for gate in gates)
        lines.append(f"{left}\t\t{right}\n")
    write_bytes_atomic(path, "".join(lines).encode())


def read_expert_weights(path: Path) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Reads such a file: `(ids, gates)` of each line, `[tokens K]`.

    Raises:
      ConfigError: the file is missing, or a line is something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        left, _, right = line.partition("\t\t")
        try:
            ids = np.asarray([int(one) for one in left.split("\t")], np.int64)
            gates = np.asarray([float(one) for one in right.split("\t")], np.float64)
        except ValueError:
            raise ConfigError(
                f"{path}: line {number}: is not ids, two tabs and weights, separated by tabs"
            ) from None
        if len(ids) != len(gates):
            raise ConfigError(f"{path}: line {number}: {len(ids)} ids, {len(gates)} weights")
        if len(ids) and not (ids.min() >= 0 and ids.max() < MAX_ID and np.isfinite(gates).all()):
            raise ConfigError(f"{path}: line {number}: an id or a weight is out of range")
        found.append((ids, gates))
    if not found:
        raise ConfigError(f"{path}: is empty")
    return found


def scores_of_weights(
    rows: Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]], slots: int, experts: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`(g_E, r_E)` float64 of the lines of a file: means over all tokens, as the released
    summaries are (not over the lines, which are of different lengths).

    Args:
      rows: of `read_expert_weights`.
      slots: K.
      experts: E.

    Raises:
      ConfigError: an expert is out of range, or a line is no whole number of tokens.
    """
    gate_E, used_E, tokens = np.zeros(experts), np.zeros(experts), 0
    for number, (ids, gates) in enumerate(rows, start=1):
        if len(ids) % slots:
            raise ConfigError(f"line {number}: {len(ids)} weights are no multiple of K={slots}")
        if len(ids) and ids.max() >= experts:
            raise ConfigError(
                f"line {number}: expert {ids.max()} is out of range; nearest valid {experts - 1}"
            )
        gate_E += np.bincount(ids, gates, minlength=experts)
        used_E += np.bincount(ids[gates > 0], minlength=experts)
        tokens += len(ids) // slots
    return gate_E / max(tokens, 1), used_E / slots / max(tokens, 1)


def _write(path: Path, record: Mapping[str, Any]) -> None:
    # Not `write_json`, which sorts "10" before "2": their code breaks ties by the order of a file.
    text = json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False)
    write_bytes_atomic(path, (text + "\n").encode())


def _plain(origin: Origin) -> dict[str, Any]:
    """An origin as JSON holds it."""
    record = dataclasses.asdict(origin)
    record["experts"] = {str(layer): count for layer, count in sorted(origin.experts.items())}
    return record


def _origin(path: Path, record: Any) -> Origin:
    """What a file says of its origin; a file of theirs says nothing."""
    ours = _mapping(path, OURS, record)
    version = ours.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise ConfigError(
            f"{path}: {OURS}.format_version={version!r}: this version reads {FORMAT_VERSION}"
        )
    known: dict[str, Any] = {}
    for field in dataclasses.fields(Origin):
        if field.name not in ours:
            continue
        value = ours[field.name]
        if field.name == "experts":
            layers = _mapping(path, f"{OURS}.experts", value)
            known["experts"] = {
                _number(path, f"{OURS}.experts", layer): _number(path, f"{OURS}.experts", count)
                for layer, count in layers.items()
            }
            continue
        wanted = str if field.type == "str" else int
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ConfigError(f"{path}: {OURS}.{field.name}={value!r}: must be {wanted.__name__}")
        known[field.name] = value
    return Origin(**known)


def _record(path: Path, *required: str) -> dict[str, Any]:
    record = read_json(path)
    if not isinstance(record, dict):
        raise ConfigError(f"{path}: holds no JSON object")
    for key in required:
        if key not in record:
            known = [name for name in record if name != OURS]
            raise ConfigError(
                f"{path}: has no {key!r}{nearest(key, known)}; is it another kind of file?"
            )
    return record


def _mapping(path: Path, where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {where} is not a JSON object")
    return value


def _number(path: Path, where: str, value: Any) -> int:
    """An id: digits as a key, an integer in a list."""
    if isinstance(value, str) and value.isdecimal() and value.isascii() and len(value) < 10:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MAX_ID:
        raise ConfigError(f"{path}: {where}: {value!r} is no number of a layer or an expert")
    return value


def _score(path: Path, where: str, expert: str, value: Any) -> float:
    score = _float(value)
    if not (math.isfinite(score) and score >= 0):
        raise ConfigError(f"{path}: {where}.{expert}={value!r}: must be a finite number >= 0")
    return score


def _float(value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number else math.nan


def _by_id(item: tuple[str, Any]) -> tuple[int, str]:
    """Orders keys as numbers; what is none comes last, to be refused."""
    key = item[0]
    return (int(key) if key.isdecimal() and key.isascii() and len(key) < 10 else MAX_ID, key)
