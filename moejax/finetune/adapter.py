"""Adapters: what a fine-tuning has trained, alone, in `adapter.json` and `adapter.safetensors`.

Arrays are in config order, so an adapter goes onto its base on any mesh. The base is known by the
hash of its parameters: an adapter of another one is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from moejax.config import ConfigError, build, nearest, read_json, to_plain, write_json
from moejax.config.knobs import knob
from moejax.interop.safetensors import NAMES, SafetensorsFile, write_safetensors
from moejax.models import Transformer
from moejax.probe.opened import OpenedRun, Restored, Say
from moejax.train.layout import make_layout
from moejax.train.shapes import on_mesh
from moejax.train.tuning import METHODS, Arrays, Method, Tuning, count

Tree = dict[str, Any]

FORMAT_VERSION = 1
RECORD, ARRAYS = "adapter.json", "adapter.safetensors"
ROUTER_STATE = "router_state/"
"""Before the paths of what routers keep outside the gradient."""


class Stored:
    """What every registered method shares: how it is stored."""

    def store(self, directory: Path, record: Mapping[str, Any], arrays: Arrays) -> int:
        """Writes an adapter and returns its bytes (`moejax.train.tuning.Method`)."""
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / ARRAYS
        shapes = {name: (array.shape, NAMES[array.dtype]) for name, array in arrays.items()}
        write_safetensors(file, shapes, arrays.items(), {"format": "moejax"})
        plain = to_plain(_Held(self))["method"]
        write_json(
            directory / RECORD,
            {
                "format_version": FORMAT_VERSION,
                "kind": plain["name"],
                "method": plain,
                "sha256": _digest(file),
                **record,
            },
        )
        return sum((directory / name).stat().st_size for name in (RECORD, ARRAYS))


@dataclasses.dataclass(frozen=True)
class _Held:
    """A method as a knob, to be written and read."""

    method: Any = knob(registry=METHODS)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter on the disk, its record checked.

    Attributes:
      directory: where it is.
      method: what it trains.
      base_hash: of the parameters that it belongs to.
      record: all of adapter.json.
    """

    directory: Path
    method: Method
    base_hash: str
    record: dict[str, Any]

    @property
    def num_bytes(self) -> int:
        """Of both files."""
        return sum((self.directory / name).stat().st_size for name in (RECORD, ARRAYS))

    @property
    def base_step(self) -> int:
        """Checkpoint of the base that it was trained from."""
        return int(self.record["base"]["step"])

    def parameters(self) -> int:
        """Trained numbers, those of the routers' state aside."""
        tensors = SafetensorsFile(self.directory / ARRAYS).tensors
        shapes = {name: one for name, one in tensors.items() if not name.startswith(ROUTER_STATE)}
        return count(shapes)

    def arrays(self) -> Arrays:
        """All arrays by path.

        Raises:
          ConfigError: the file is damaged or not the one that the record is about.
        """
        path = self.directory / ARRAYS
        if _digest(path) != self.record["sha256"]:
            raise ConfigError(f"{path}: is not the file that {RECORD} was written for, or damaged")
        file = SafetensorsFile(path)
        return {name: file.read(name) for name in file.tensors}


def read_adapter(directory: str | os.PathLike[str]) -> Adapter:
    """Opens an adapter, or that of a run directory.

    Raises:
      ConfigError: no adapter is there, or its record is none of this version's.
    """
    root = Path(directory)
    if not (root / RECORD).is_file() and (root / "adapter" / RECORD).is_file():
        root = root / "adapter"
    if not root.is_dir():
        names = os.listdir(root.parent) if root.parent.is_dir() else []
        raise ConfigError(f"{root}: no such directory{nearest(root.name, names)}")
    path = root / RECORD
    record = read_json(path)
    if not (root / ARRAYS).is_file():
        raise ConfigError(f"{root}: has {RECORD} and no {ARRAYS}: copied in part?")
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != FORMAT_VERSION:
        raise ConfigError(
            f"{path}: has format_version {version!r}; this moejax reads {FORMAT_VERSION}"
        )
    for key, kind in (("base_hash", str), ("base", dict), ("method", dict), ("sha256", str)):
        if not isinstance(record.get(key), kind):
            raise ConfigError(f"{path}: {key} is missing or no {kind.__name__}")
    if not isinstance(record["base"].get("step"), int):
        raise ConfigError(f"{path}: base.step is missing or no number")
    held = build(_Held, {"method": record["method"]}, str(path))
    return Adapter(root, held.method, record["base_hash"], record)


@dataclasses.dataclass(frozen=True)
class FittingBase:
    """A base that an adapter belongs to: its directory and model, and the checkpoint."""

    root: Path
    model: Transformer
    mesh: Mesh | None
    restored: Restored


def require_base(
    adapter: Adapter, run: OpenedRun, step: int | None = None, say: Say = print
) -> FittingBase:
    """The checkpoint of a run that an adapter belongs to.

    Args:
      adapter: of `read_adapter`.
      run: the base, or a copy of it.
      step: its checkpoint; None: the one that the adapter was trained from, if it is there.
      say: told of damaged checkpoints.

    Raises:
      ConfigError: the adapter belongs to other parameters.
      StorageError: the checkpoint is damaged.
    """
    if step is None and adapter.base_step in run.steps():
        step = adapter.base_step
    base = run.restore(step, say)
    found = run.params_hash(base.step)
    if found != adapter.base_hash:
        theirs = f"step {adapter.base_step} of {adapter.record['base'].get('run')}"
        raise ConfigError(
            f"{adapter.directory}: belongs to another base: was trained from {theirs}, hash "
            f"{adapter.base_hash}, and step {base.step} of {run.root} has the hash {found}"
        )
    return FittingBase(run.root, run.model, run.mesh, base)


def applied(
    adapter: Adapter, run: OpenedRun, step: int | None = None, say: Say = print
) -> Restored:
    """The base with an adapter on it, on the base's mesh; arguments and errors as `require_base`.

    Raises:
      ConfigError: also where the adapter does not fit the model.
    """
    base = require_base(adapter, run, step, say)
    params, router_state = put_on(adapter, base.model, base.mesh, base.restored)
    return Restored(base.restored.step, params, router_state)


def put_on(
    adapter: Adapter, model: Transformer, mesh: Mesh | None, base: Restored
) -> tuple[Tree, Tree]:
    """Whole parameters and router state of an adapter on a base that it belongs to.

    Raises:
      ConfigError: an array is missing, or has another shape or dtype than the model asks for.
    """
    trainable, tuning, arrays = held_arrays(adapter, model, mesh)
    key = jax.random.key(0)
    assembled = jax.jit(
        lambda own, params: tuning.assemble(own, tuning.split(params, key)[1]),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, base.params),
    )
    router_state = base.router_state
    if tuning.routes:
        where = adapter.directory / ARRAYS
        wanted = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            router_state,
        )
        router_state = _filled(wanted, arrays, ROUTER_STATE, where)
    return assembled(trainable, base.params), router_state


def held_arrays(
    adapter: Adapter, model: Transformer, mesh: Mesh | None
) -> tuple[Tree, Tuning, Arrays]:
    """The trainable tree as a model holds it, the tuning that it belongs to, and all arrays.

    Raises:
      ConfigError: as `put_on`.
    """
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    tuning = adapter.method.plan(model, params)
    held, _ = jax.eval_shape(tuning.split, params, jax.random.key(0))
    if mesh is not None:
        held = on_mesh(held, mesh)
    layout = make_layout(held, model.placements(), mesh)
    arrays = adapter.arrays()
    where = adapter.directory / ARRAYS
    stored = _filled(layout.stored, arrays, "", where)
    names = {*_named(layout.stored)}
    extra = [n for n in arrays if n not in names and not n.startswith(ROUTER_STATE)]
    if extra:
        raise ConfigError(f"{where}: the model has no {extra[0]} to train")
    return layout.hold(stored), tuning, arrays


def _filled(wanted: Tree, arrays: Arrays, prefix: str, where: Path) -> Tree:
    """The tree of shapes `wanted` with the arrays of the same paths, checked."""

    def leaf_of(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        name = prefix + jax.tree_util.keystr(path, simple=True, separator="/")
        array = arrays.get(name)
        if array is None:
            raise ConfigError(f"{where}: lacks {name}, which the method trains in this model")
        if (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
            raise ConfigError(
                f"{where}: {name} is {array.dtype}{list(array.shape)}, and {leaf.dtype}"
                f"{list(leaf.shape)} in this model"
            )
        if getattr(leaf, "sharding", None) is None:
            return jax.numpy.asarray(array)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda at: array[at])

    made: Tree = jax.tree_util.tree_map_with_path(leaf_of, wanted)
    return made


def _named(tree: Tree) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
