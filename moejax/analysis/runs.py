"""Finds and loads run directories. Whatever is wrong with one becomes a `Note`, never a crash.

Only files of the run-directory format are read (docs/report.md); a config file is never executed.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moejax.analysis import arrays, text
from moejax.analysis.series import Metrics, read_metrics
from moejax.config.files import read_json
from moejax.config.knobs import ConfigError, nearest

MAX_JSON_BYTES = 64 << 20
MARKERS = ("config.json", "metrics.jsonl", "status.json", "model.json")
_CELL = re.compile(r"(.+)-[0-9a-f]{10}", re.DOTALL)
CAUSES = ("k_max", "capacity", "row_budget", "exchange_send", "exchange_receive")

_ROUTING_FIELDS = {
    "layers_L": arrays.Field("L", "iu"),
    "width_LE": arrays.Field("LE", "iu"),
    "count_LE": arrays.Field("LE"),
    "requested_L": arrays.Field("L"),
    "kept_L": arrays.Field("L"),
    "active_L": arrays.Field("L"),
    "active_width_L": arrays.Field("L"),
    "entropy_L": arrays.Field("L", required=False),
    "tokens": arrays.Field("", required=False),
    **{f"dropped_{cause}_L": arrays.Field("L", required=False) for cause in CAUSES},
}


@dataclasses.dataclass(frozen=True)
class Note:
    """One thing a reader must know: `severity` is "excluded", "warning" or "note"."""

    run: str
    severity: str
    where: str
    what: str


class Record:
    """A JSON object of unknown health: look-ups that answer NaN, "" or () instead of failing."""

    def __init__(self, value: object = None) -> None:
        self.value: dict[str, Any] = value if isinstance(value, dict) else {}

    def __bool__(self) -> bool:
        return bool(self.value)

    def get(self, *keys: str) -> object:
        """The value at a path of keys, or None."""
        node: object = self.value
        for key in keys:
            node = node.get(key) if isinstance(node, dict) else None
        return node

    def number(self, *keys: str) -> float:
        """A finite number, or NaN."""
        value = self.get(*keys)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return math.nan
        return float(value) if abs(value) < 1e300 else math.nan

    def string(self, *keys: str) -> str:
        """A string made visible and bounded, or ""."""
        value = self.get(*keys)
        return text.clean(value, 200) if isinstance(value, str) else ""

    def strings(self, *keys: str) -> tuple[str, ...]:
        """A list as visible, bounded strings, or ()."""
        value = self.get(*keys)
        return tuple(text.clean(v, 80) for v in value[:4096]) if isinstance(value, list) else ()

    def records(self, *keys: str) -> list[Record]:
        """A list of objects, or []."""
        value = self.get(*keys)
        return [Record(v) for v in value[:4096]] if isinstance(value, list) else []


@dataclasses.dataclass(frozen=True)
class Routing:
    """The newest readable `routing/STEP.npz`: see docs/report.md for shapes and units."""

    step: int
    layers_L: NDArray
    width_LE: NDArray
    count_LE: NDArray
    requested_L: NDArray
    kept_L: NDArray
    active_L: NDArray
    active_width_L: NDArray
    dropped: dict[str, NDArray]

    @property
    def exists_LE(self) -> NDArray[np.bool_]:
        """True where the layer has such an expert."""
        return np.asarray(self.width_LE >= 0)


@dataclasses.dataclass
class Run:
    """One run as its directory tells it; every part may be empty."""

    name: str
    path: str
    root: Path
    index: int
    config: Record
    model: Record
    data: Record
    env: Record
    status: Record
    final: Record
    metrics: Metrics
    routing: Routing | None
    notes: list[Note]

    def note(self, severity: str, where: str, what: str) -> None:
        """Adds something the reader of the report must know about this run."""
        self.notes.append(Note(self.name, severity, where, what))

    @property
    def state(self) -> str:
        """running, done, failed, interrupted, or unknown."""
        return self.status.string("state") or "unknown"

    @property
    def text_id(self) -> tuple[str, str]:
        """(manifest hash, tokenizer hash): where equal, losses per token are comparable."""
        return self.data.string("manifest_hash"), self.data.string("tokenizer_hash")

    @property
    def text_hash(self) -> str:
        """Names the validation text whatever the tokenizer: by the documents, else the manifest."""
        documents = self.data.records("documents")
        if not documents:
            return self.data.string("manifest_hash")
        return repr([(d.string("sha256"), d.number("validation_bytes")) for d in documents])


def find_runs(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Run directories among `paths`: each is one, or a directory whose children are.

    Raises:
      ConfigError: no such directory (with the nearest one that exists), or nothing given.
    """
    if not paths:
        raise ConfigError("no run directory given: python -m tools.evaluate RUN_DIR... --out=DIR")
    found: list[str] = []
    for path in [os.fspath(p) for p in paths]:
        if not os.path.isdir(path):
            raise ConfigError(f"{text.clean(path)}: no such run directory{_nearest_run(path)}")
        children = [] if looks_like_run(path) else _child_runs(path)
        # A directory with neither is kept: loading it says why it is left out of the report.
        found.extend(children or [path])
    by_place: dict[str, str] = {}
    for path in found:
        by_place.setdefault(os.path.realpath(path), os.path.normpath(path))
    return list(by_place.values())


def load_runs(paths: Sequence[str]) -> tuple[list[Run], list[Note]]:
    """Loads every directory; those that are not runs come back as notes "excluded"."""
    runs: list[Run] = []
    excluded: list[Note] = []
    for path, name in zip(paths, _unique_names(paths), strict=True):
        if not looks_like_run(path):
            what = f"not a run directory: has none of {', '.join(MARKERS)}"
            excluded.append(Note(name, "excluded", text.clean(path), what))
        else:
            runs.append(_load(path, name, len(runs)))
    return runs, excluded


def _load(path: str, name: str, index: int) -> Run:
    root = Path(path)
    notes: list[Note] = []
    parts = {
        part: _read_record(root / f"{part}.json", part == "final", name, notes)
        for part in ("config", "model", "data", "env", "status", "final")
    }
    metrics = read_metrics(root / "metrics.jsonl")
    notes.extend(Note(name, "warning", "metrics.jsonl", what) for what in metrics.problems)
    run = Run(
        name, text.clean(path), root, index, **parts, metrics=metrics, routing=None, notes=notes
    )
    run.routing = _read_routing(run)
    return run


def _read_record(path: Path, optional: bool, run: str, notes: list[Note]) -> Record:
    try:
        if path.is_file() and path.stat().st_size > MAX_JSON_BYTES:
            raise ConfigError(f"{path.name}: larger than {MAX_JSON_BYTES:,} bytes")
        value = read_json(path)
    except (ConfigError, RecursionError) as error:
        if not (optional and not path.exists()):
            what = str(error).replace(str(path), path.name).removeprefix(f"{path.name}: ")
            notes.append(Note(run, "warning", path.name, text.clean(what)))
        return Record()
    record = Record(value)
    if not record:
        notes.append(Note(run, "warning", path.name, "is not a JSON object: ignored"))
    elif record.get("format_version") != arrays.FORMAT_VERSION:
        version = text.clean(record.get("format_version"), 20)
        what = f"format_version is {version}, this reader knows {arrays.FORMAT_VERSION}"
        notes.append(Note(run, "warning", path.name, what))
    return record


def _read_routing(run: Run) -> Routing | None:
    for path in arrays.newest(run.root / "routing"):
        try:
            found = arrays.read_arrays(path, _ROUTING_FIELDS)
        except arrays.ArrayFileError as error:
            run.note("warning", f"routing/{path.name}", f"{error}; an older one is used, if any")
            continue
        dropped = {c: found[f"dropped_{c}_L"] for c in CAUSES if f"dropped_{c}_L" in found}
        names = (f.name for f in dataclasses.fields(Routing))
        kept = {name: found[name] for name in names if name in found}
        return Routing(step=int(path.stem), dropped=dropped, **kept)
    if run.model.records("layers") and any(
        layer.string("kind") == "moe" for layer in run.model.records("layers")
    ):
        run.note(
            "warning", "routing/", "no readable routing file: no load and no per-layer figures"
        )
    return None


def looks_like_run(path: str) -> bool:
    """Whether a directory has any of the files that make it a run."""
    return any(os.path.isfile(os.path.join(path, marker)) for marker in MARKERS)


def _child_runs(path: str) -> list[str]:
    children = (os.path.join(path, entry) for entry in sorted(os.listdir(path), key=_natural))
    return [child for child in children if os.path.isdir(child) and looks_like_run(child)]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts seed2 before seed10."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(p), "") if p.isdigit() and p.isascii() else (-1, p) for p in parts]


def _nearest_run(path: str) -> str:
    """Did-you-mean over the runs beside `path`, or a plain list of them."""
    parent = os.path.dirname(os.path.normpath(path)) or "."
    if not os.path.isdir(parent):
        return f" (nor is there a directory {text.clean(parent)})"
    names = [os.path.basename(child) for child in _child_runs(parent)]
    if not names:
        return ""
    hint = nearest(os.path.basename(os.path.normpath(path)), names)
    return text.clean(hint or f"; there are: {text.listing(names)}")


def _unique_names(paths: Sequence[str]) -> Iterator[str]:
    """The shortest tails of the paths that tell them apart: `run`, or `a/run` and `b/run`.

    Cells of a grid go without the ten digits of a hash behind their name, unless another directory
    beside them is called the same without them.
    """
    whole = [Path(os.path.abspath(path)) for path in paths]
    short = [path.parent / _without_hash(path) for path in whole]
    claimed = Counter(place for pair in zip(whole, short, strict=True) for place in {*pair})
    parts = [
        (own if claimed[own] == 1 else path).parts for path, own in zip(whole, short, strict=True)
    ]
    for own in parts:
        depth = 1
        while depth < len(own) and sum(other[-depth:] == own[-depth:] for other in parts) > 1:
            depth += 1
        yield text.clean("/".join(own[-depth:]), 120)


def _without_hash(path: Path) -> str:
    cell = _CELL.fullmatch(path.name)
    return cell[1] if cell and (path.parent / "grid.json").is_file() else path.name
