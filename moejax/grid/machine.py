"""The machine that a plan is for: this one, or chips by name."""

from __future__ import annotations

import dataclasses
import math
import shutil
import statistics
from collections.abc import Iterable
from pathlib import Path

from moejax.config import ConfigError, read_json
from moejax.sharding.topology import Topology, parse_topology
from moejax.train.aot_search import USABLE
from moejax.train.environment import cpu_model, usable_cores
from moejax.train.flops import recorded_peak

EFFICIENCY = 0.3
"""Part of the GEMM peak that runs reach where none of this root's tells (0.25 to 0.58 in the
quickstart and the README's runs; perf/mfu in metrics.jsonl)."""

STARTUP_SECONDS = 30.0
"""Of a process that prepares its data and compiles, on two cores."""

PROCESS_BYTES = 0.7 * 1024**3
"""Of a process with JAX and a compiled program, besides its arrays. With it the estimates for
`nano` with top-p are 0.76 GB (quick) and 0.92 GB; the processes' peaks were 0.74 and 1.00 GB."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a plan is held against.

    Attributes:
      name: for people.
      memory: bytes of the machine, or usable ones of a chip.
      flops_per_second: that a run on the whole machine reaches; NaN: unknown. Not for chips.
      origin: where that number comes from, in words.
      disk: bytes free where the root is, or will be.
      disk_place: that place.
      topology: the chips, or None for this machine.
      process_bytes, startup_seconds: as the constants above; 0 for chips.
    """

    name: str
    memory: float
    flops_per_second: float
    origin: str
    disk: float
    disk_place: str
    topology: Topology | None = None
    process_bytes: float = 0.0
    startup_seconds: float = 0.0


def this_machine(root: Path | None, cache: Path, finished: Iterable[Path] = ()) -> Machine:
    """The machine that this process is on; asks the operating system and files only.

    Args:
      root: of the grid; None: the present directory.
      cache: where `moejax.train.flops.peak_flops` keeps what it measured.
      finished: run directories of finished cells, whose speed is the best evidence there is.
    """
    cores, place = usable_cores(), _existing(root or Path())
    speeds = [speed for run in finished if math.isfinite(speed := _speed(run))]
    peak = recorded_peak(cache)
    if speeds:
        speed = statistics.median(speeds)
        origin = f"{speed / 1e9:.3g} GFLOP/s, the median of {len(speeds)} finished cells"
    elif math.isfinite(peak):
        speed = EFFICIENCY * peak
        origin = (
            f"{speed / 1e9:.3g} GFLOP/s, {EFFICIENCY:.0%} of the GEMM peak of {peak / 1e9:.3g} "
            f"that an earlier run measured here ({cache})"
        )
    else:
        speed = math.nan
        origin = (
            "unknown: no run has measured this machine yet; any run does, e.g. python -m "
            "experiments.quickstart --quick"
        )
    return Machine(
        name=f"this machine ({cpu_model()}, {cores} cores)",
        memory=_memory(),
        flops_per_second=speed,
        origin=origin,
        disk=float(shutil.disk_usage(place).free),
        disk_place=str(place),
        process_bytes=PROCESS_BYTES,
        startup_seconds=STARTUP_SECONDS,
    )


def named_machine(chip: str, root: Path | None) -> Machine:
    """Chips by name, `v5e:4x4`; a name alone (`v5e`) is one chip, `h100` one GPU.

    Raises:
      ConfigError: no such chip or shape.
    """
    text = chip if ":" in chip else f"{chip}:{_ONE.get(chip.lower(), '1x1')}"
    try:
        topology = parse_topology(text)
    except ConfigError as error:
        raise ConfigError(str(error).replace("--topology=", "--chip=")) from error
    place = _existing(root or Path())
    return Machine(
        name=topology.name,
        memory=USABLE * topology.figures.hbm,
        flops_per_second=math.nan,
        origin="the middle between full overlap and none of the roofline of its data sheet, "
        "compilation left out",
        disk=float(shutil.disk_usage(place).free),
        disk_place=str(place),
        topology=topology,
    )


_ONE = {"v4": "1x1x1", "v5p": "1x1x1"}


def _speed(run: Path) -> float:
    """Measured training FLOPs per second of a finished run, or NaN."""
    try:
        final = read_json(run / "final.json")
        return float(final["compute"]["flops"]) / float(final["time"]["elapsed"])
    except (ConfigError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return math.nan


def _memory() -> float:
    """Bytes that processes may use here: the machine's, or less in a container."""
    found = [math.inf]
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            found.append(float(line.split()[1]) * 1024)
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        found.append(float(text))
    return min(found)


def _existing(path: Path) -> Path:
    """The nearest parent that is there."""
    path = path.expanduser().absolute()
    while not path.is_dir():
        path = path.parent
    return path
