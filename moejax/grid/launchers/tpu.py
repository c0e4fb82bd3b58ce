"""Cells as TPU VM slices: the commands that ask for each as a queued resource and train there."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence

from moejax.config.knobs import ConfigError
from moejax.grid.launchers import Spec
from moejax.grid.launchers.printed import Printer
from moejax.grid.launchers.remote import elsewhere, job_name
from moejax.sharding.topology import Topology, parse_topology

# cloud.google.com/tpu/docs/runtimes; the accelerator types of v4 and v5p count TensorCores, two in
# a chip, those of v5e and v6e chips.
TYPES = {
    "v4": ("v4-", 2, "tpu-ubuntu2204-base"),
    "v5e": ("v5litepod-", 1, "v2-alpha-tpuv5-lite"),
    "v5p": ("v5p-", 2, "v2-alpha-tpuv5"),
    "v6e": ("v6e-", 1, "v2-alpha-tpuv6e"),
}


def accelerator_type(topology: Topology) -> tuple[str, str]:
    """Google Cloud's accelerator type and runtime version of a slice.

    Raises:
      ConfigError: no TPU, or several slices.
    """
    if topology.chip not in TYPES:
        raise ConfigError(f"--topology={topology.name}: is no TPU; known: {', '.join(TYPES)}")
    if topology.slices != 1:
        raise ConfigError(
            f"--slices={topology.slices}: --launcher=tpu trains each cell on one slice; nearest "
            "valid value 1"
        )
    prefix, cores, runtime = TYPES[topology.chip]
    return f"{prefix}{cores * math.prod(topology.shape)}", runtime


class QueuedResources(Printer):
    """Writes a shell script: ask for a slice per cell, then `tools/launch/tpu_vm.sh` on each.

    Args:
      grid: the grid's name, for the names of the slices.
      topology: of a slice, e.g. `v5e:4x4`.
      zone: where.
      remote_root: a bucket, `gs://...`: the disk of a slice goes with the slice.
      slices: only 1.

    Raises:
      ConfigError: a part that is missing, or that Google Cloud would refuse.
    """

    name = "tpu"

    def __init__(
        self,
        grid: str,
        *,
        topology: str,
        zone: str,
        remote_root: str,
        slices: int = 1,
    ) -> None:
        for value, flag, example in (
            (topology, "--topology", "--topology=v5e:4x4"),
            (zone, "--zone", "--zone=us-east5-a"),
            (remote_root, "--remote-root", "--remote-root=gs://BUCKET/routers"),
        ):
            if not value:
                raise ConfigError(f"{flag}: --launcher=tpu needs it, e.g. {example}")
        if not remote_root.startswith("gs://"):
            raise ConfigError(
                f"--remote-root={remote_root}: a slice's disk goes with the slice; nearest valid: "
                f"a bucket, e.g. gs://BUCKET/{grid}"
            )
        self._grid = grid
        self._type, self._runtime = accelerator_type(parse_topology(topology, slices))
        self._zone = zone
        self._remote_root = remote_root

    def render(self, specs: Sequence[Spec]) -> str:
        names = [job_name(self._grid, spec.directory) for spec in specs]
        parts = ["#!/bin/bash\nset -euo pipefail\n"]
        for name, spec in zip(names, specs, strict=True):
            parts.append(
                f"\n# {spec.name}\n"
                + self._resources(
                    "create",
                    name,
                    f"--node-id={name}",
                    f"--accelerator-type={self._type}",
                    f"--runtime-version={self._runtime}",
                )
            )
        parts.append("\n# When a slice is ACTIVE (gcloud compute tpus queued-resources list):\n")
        for name, spec in zip(names, specs, strict=True):
            vm = ["tools/launch/tpu_vm.sh", "setup", name, f"--zone={self._zone}"]
            start = [*vm[:1], "start", *vm[2:], "--", *elsewhere(spec, self._remote_root)]
            parts.append(f"{shlex.join(vm)}\n{shlex.join(start)}\n")
        parts.append("\n# When its run is over (tools/launch/tpu_vm.sh status NAME):\n")
        parts += ["# " + self._resources("delete", name, "--force", "--quiet") for name in names]
        return "".join(parts)

    def _resources(self, action: str, name: str, *flags: str) -> str:
        words = ["gcloud", "compute", "tpus", "queued-resources", action, name]
        return shlex.join([*words, f"--zone={self._zone}", *flags]) + "\n"
