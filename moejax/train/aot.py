"""Compiles a run's real train step for a machine that is not here, and says what it would cost."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any

import jax

import moejax
from moejax.config import ConfigError, to_plain, write_json
from moejax.sharding.hlo import parse
from moejax.sharding.hlo_totals import score_tensors, totals
from moejax.sharding.mesh import AXES, MeshConfig, make_mesh
from moejax.sharding.topology import GIB, Topology, check_compiler, devices_of
from moejax.train.aot_report import FORMAT_VERSION, Compiled, make_report, versions
from moejax.train.errors import RunError
from moejax.train.experiment import Experiment
from moejax.train.programs import check_rows, make_lowerings

QUICK = {"exec_time_optimization_effort": -1.0}
"""Compiler options of a quick look: other collectives, more memory; not for reported figures."""
_SOURCES = ("config", "experts", "models", "routing", "sharding", "train")
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


class UnfitError(RunError):
    """A program does not fit its machine, or fails a check of the report."""

    exit_code = 5
    state = "not ready"


def parse_mesh(text: str, path: str = "--mesh") -> MeshConfig:
    """A mesh from `data=1,fsdp=-1,expert=8`; axes that are left out are 1, `fsdp` is the rest.

    Raises:
      ConfigError: an unknown axis, or a size that is no number.
    """
    sizes: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        axis, equals, size = part.strip().partition("=")
        if axis not in AXES or not equals or not re.fullmatch(r"-?\d+", size):
            raise ConfigError(
                f"{path}={text}: {part!r} is no AXIS=SIZE; axes: {', '.join(AXES)}; nearest valid "
                f"value data=1,fsdp=-1"
            )
        sizes[axis] = int(size)
    if -1 in sizes.values():
        sizes.setdefault("fsdp", 1)
    mesh = MeshConfig(**sizes)
    mesh.validate(path)
    return mesh


def fit_report(
    experiment: Experiment,
    topology: Topology,
    *,
    quick: bool = False,
    recompile: bool = False,
    path: str = "config.mesh",
) -> dict[str, Any]:
    """The report of one experiment on one machine, from the cache if it was made before.

    Args:
      experiment: checked; its `mesh` says how devices are used.
      quick: let the compiler optimise less.
      recompile: do not read the cache.
      path: what a mistake in the mesh is called.

    Raises:
      ConfigError: mesh, batch or model do not fit the devices, or the compiler is missing: before
        anything is compiled.
    """
    experiment = dataclasses.replace(
        experiment, mesh=dataclasses.replace(experiment.mesh, slices=topology.slices)
    )
    cache = experiment.data.cache_path / "aot"
    file = cache / f"report-{request_key(experiment, topology, quick)}.json"
    if not recompile:
        found = read_cache(file)
        if found is not None:
            return found | {"cached": True}
    check_mesh(experiment.mesh, topology, path)
    check_compiler(topology)
    mesh = _mesh(experiment, topology, path)
    check_rows(experiment, mesh)
    plan = make_lowerings(experiment, mesh=mesh)
    compiled = _compile(plan.lower["train_step"], topology, experiment.data.seq_len, quick)
    state = state_bytes(plan.abstract)
    report = make_report(experiment, topology, dict(mesh.shape), compiled, state, quick)
    whole = whole_parameters(plan.abstract.trainable)
    if whole:
        report["notes"].append(f"parameters that every chip holds whole: {', '.join(whole[:4])}")
    write_json(file, report)
    return report | {"cached": False}


def check_mesh(mesh: MeshConfig, topology: Topology, path: str = "config.mesh") -> None:
    """Raises ConfigError, without devices, when a mesh does not use the machine's chips, all of
    them, or its `data` does not span the slices."""
    resolved = mesh.resolve(topology.num_chips, path)
    used = math.prod(resolved.sizes)
    if used != topology.num_chips:
        raise ConfigError(
            f"{path}: uses {used} of the {topology.num_chips} chips of {topology.name}; nearest "
            f"valid value fsdp=-1, or a smaller topology"
        )
    if resolved.data % topology.slices:
        raise ConfigError(
            f"{path}.data={resolved.data}: {topology.slices} slices are an outer factor of data; "
            f"nearest valid value data={topology.slices}"
        )


def request_key(experiment: Experiment, topology: Topology, quick: bool) -> str:
    """Hash of everything that shapes a report and is known before anything is lowered."""
    wanted = {
        "format": FORMAT_VERSION,
        "config": {k: v for k, v in to_plain(experiment).items() if k not in ("name", "log")},
        "topology": topology.name,
        "quick": quick,
        "versions": versions(topology),
        "source": _source_hash(),
        "flags": {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")},
    }
    text = json.dumps(wanted, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def read_cache(file: Path) -> dict[str, Any] | None:
    """A report of this format; None where there is none, or what is there cannot be read."""
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError):  # a cache: what cannot be read is made again
        return None
    valid = isinstance(record, dict) and record.get("format_version") == FORMAT_VERSION
    return record if valid else None


def _source_hash() -> str:
    root = Path(moejax.__file__).resolve().parent
    digest = hashlib.sha256()
    for file in sorted(path for part in _SOURCES for path in (root / part).rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _mesh(experiment: Experiment, topology: Topology, path: str) -> Any:
    try:
        return make_mesh(experiment.mesh, devices_of(topology), path)
    except (NotImplementedError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(
            f"{path}: does not lie on {topology.name}: {reason}; nearest valid: axes that are "
            "products of the slice's dimensions"
        ) from error


def state_bytes(abstract: Any) -> dict[str, int]:
    """Bytes of the train state on one device: parameters, optimizer, and the rest."""

    def own(tree: Any) -> int:
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )

    params, optimizer = own((abstract.trainable, abstract.frozen)), own(abstract.opt_state)
    return {
        "parameters": params,
        "optimizer": optimizer,
        "other": own(abstract) - params - optimizer,
    }


def whole_parameters(params: Any, least: int = 64 * 2**20) -> tuple[str, ...]:
    """Names of parameters of at least so many bytes that every device holds whole."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        num_bytes = math.prod(leaf.shape) * leaf.dtype.itemsize
        whole = leaf.sharding.shard_shape(leaf.shape) == leaf.shape
        if whole and num_bytes >= least and leaf.sharding.num_devices > 1:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            found.append((-num_bytes, f"{name} ({num_bytes / GIB:.2f} GiB)"))
    return tuple(name for _, name in sorted(found))


def _compile(lower: Any, topology: Topology, seq_len: int, quick: bool) -> Compiled:
    start = time.perf_counter()
    lowered = lower()
    seconds = {"lower": time.perf_counter() - start}
    program = hashlib.sha256(lowered.as_text().encode()).hexdigest()[:24]
    start = time.perf_counter()
    try:
        done = lowered.compile(compiler_options=QUICK if quick else None)
    except jax.errors.JaxRuntimeError as error:
        seconds["compile"] = time.perf_counter() - start
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason, needed, available = parse_out_of_memory(str(error))
        return Compiled(program, seconds, {}, reason, needed, available)
    seconds["compile"] = time.perf_counter() - start
    stats = done.memory_analysis()
    kinds = ("argument_size", "output_size", "alias_size", "temp_size", "generated_code_size")
    memory = {kind.removesuffix("_size"): int(getattr(stats, f"{kind}_in_bytes")) for kind in kinds}
    memory["peak"] = int(getattr(stats, "peak_memory_in_bytes", 0))
    hlo = parse(done.as_text())
    # On a switch of GPUs what leaves the host is slow, on a torus what leaves the slice.
    parts = topology.slices * (1 if topology.figures.torus else topology.shape[0])
    least, most = (totals(hlo, topology.num_chips, parts, branch) for branch in ("least", "most"))
    scores = score_tensors(hlo, seq_len)
    return Compiled(program, seconds, memory, least=least, most=most, scores=scores)


def parse_out_of_memory(message: str) -> tuple[str, int, int]:
    """The reason in one line, and the bytes needed and available that it names (0: none)."""
    line = next((part for part in message.splitlines() if "out of memory" in part.lower()), message)
    number = r"([\d.]+)([KMGT]?)"
    found = re.search(rf"Used {number}i?B? of {number}", line) or re.search(
        rf"\({number}i?B?\) exceeds available \w+ \({number}", line
    )
    reason = " ".join(line.split())[:300]
    if not found:
        return reason, 0, 0
    needed, available = (
        int(float(size) * _UNITS[unit]) for size, unit in (found.groups()[:2], found.groups()[2:])
    )
    return reason, needed, available
