"""The device mesh: ordered axes `data, fsdp, expert, tensor`, from config or by hand.

| axis | splits | what crosses it |
|---|---|---|
| `data` | the batch; parameters are copies | gradients (experts': of each micro-batch) |
| `fsdp` | the batch; each parameter along one dimension | parameters before use, gradients after |
| `expert` | the batch; experts; other parameters as `fsdp` | tokens to their experts and back |
| `tensor` | heads, hidden units, vocabulary; not the batch | partial sums of activations |

Several slices (pods connected by a slow network) are an outer factor of `data`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from moejax.config.knobs import ConfigError, knob

AXES = ("data", "fsdp", "expert", "tensor")
BATCH_AXES = ("data", "fsdp", "expert")
"""The axes that share the rows of a batch."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices along each axis; none of it changes a number of the run.

    One axis may be -1: whatever the devices leave. Without a -1 the first devices are used.
    """

    data: int = knob(1, low=-1, unit="devices", doc="Copies of the parameters; -1: the rest.")
    fsdp: int = knob(-1, low=-1, unit="devices", doc="Shards of the parameters; -1: the rest.")
    expert: int = knob(1, low=-1, unit="devices", doc="Groups of experts; -1: the rest.")
    tensor: int = knob(
        1, low=-1, unit="devices", doc="Shards of heads and hidden units; -1: the rest."
    )
    slices: int = knob(
        0, low=0, unit="slices", doc="Pods on a slow network, an outer factor of data; 0: detect."
    )

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(getattr(self, axis) for axis in AXES)

    def validate(self, path: str) -> None:
        """Raises ConfigError for an axis of 0 devices or more than one -1."""
        for axis, size in zip(AXES, self.sizes, strict=True):
            if size == 0:
                raise ConfigError(f"{path}.{axis}=0: an axis has devices; nearest valid value 1")
        open_axes = [axis for axis, size in zip(AXES, self.sizes, strict=True) if size == -1]
        if len(open_axes) > 1:
            raise ConfigError(
                f"{path}.{open_axes[1]}=-1: {open_axes[0]} is -1 already, and only one axis can "
                f"take the rest; nearest valid value 1"
            )

    def resolve(self, num_devices: int, path: str = "config.mesh") -> MeshConfig:
        """This mesh with its -1 filled in.

        Raises:
          ConfigError: the axes do not fit the number of devices.
        """
        self.validate(path)
        fixed = math.prod(size for size in self.sizes if size > 0)
        shape = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, self.sizes, strict=True))
        if -1 not in self.sizes:
            if fixed > num_devices:
                raise ConfigError(
                    f"{path}: {shape} needs {fixed} devices but there are {num_devices}; "
                    f"{self._nearest(num_devices)}"
                )
            return self
        if num_devices % fixed:
            raise ConfigError(
                f"{path}: {shape} does not divide {num_devices} devices; "
                f"{self._nearest(num_devices)}"
            )
        axis = AXES[self.sizes.index(-1)]
        return dataclasses.replace(self, **{axis: num_devices // fixed})

    def _nearest(self, num_devices: int) -> str:
        """The change of one axis that makes the mesh fit."""
        best: tuple[int, str, int] | None = None
        for axis, size in zip(AXES, self.sizes, strict=True):
            if size < 1:
                continue
            others = math.prod(s for s in self.sizes if s > 0) // size
            for near in range(1, size + 1):
                fits = num_devices % (others * near) == 0
                if fits and (best is None or size - near < best[0]):
                    best = (size - near, axis, near)
        if best is None:
            return f"nearest valid mesh: fsdp={num_devices}, the others 1"
        return f"nearest valid value {best[1]}={best[2]}"


def mesh_devices() -> list[Any]:
    """The devices of all processes: what a mesh is made of unless told otherwise."""
    return list(jax.devices())


def make_mesh(
    config: MeshConfig, devices: Sequence[Any] | None = None, path: str = "config.mesh"
) -> Mesh:
    """A mesh of Auto axes (`jax.make_mesh` would make Explicit ones, which this code does not use).

    Args:
      devices: default: those of all processes; or those of a topology, to compile ahead.

    Raises:
      ConfigError: the axes do not fit the devices, or `data` does not span the slices.
    """
    devices = mesh_devices() if devices is None else list(devices)
    config = config.resolve(len(devices), path)
    devices = devices[: math.prod(config.sizes)]
    slices = config.slices or len({getattr(device, "slice_index", 0) for device in devices})
    if config.data % slices:
        near = math.ceil(config.data / slices) * slices
        raise ConfigError(
            f"{path}.data={config.data}: {slices} slices are an outer factor of data; nearest "
            f"valid value {near}"
        )
    if devices[0].platform == "tpu":
        array = _on_torus(config, slices, devices, path)
    else:
        array = np.asarray(devices).reshape(config.sizes)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _on_torus(config: MeshConfig, slices: int, devices: Sequence[Any], path: str) -> np.ndarray:
    """Devices in an order in which neighbours along an axis are neighbours in the network."""
    try:
        if slices == 1:
            return mesh_utils.create_device_mesh(
                config.sizes, devices, allow_split_physical_axes=True
            )
        inner = (config.data // slices, *config.sizes[1:])
        return mesh_utils.create_hybrid_device_mesh(
            inner, (slices, 1, 1, 1), devices, allow_split_physical_axes=True
        )
    except (ValueError, AssertionError, NotImplementedError) as error:
        present = len({getattr(device, "slice_index", 0) for device in devices})
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        shape = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, config.sizes, strict=True))
        raise ConfigError(
            f"{path}: {shape} in {slices} slice(s) cannot be laid over these {len(devices)} chips "
            f"of {present} slice(s) ({reason}); nearest valid value {path}.slices={present} and "
            "all chips of each slice"
        ) from error
