"""Machines by name, without the machines: the devices of a pod, to compile for, and its figures.

`v5p:8x8x4` is a TPU slice, `h100:2x8` two hosts of eight GPUs. The compilers are plugins: libtpu
(`pip install "moejax[tpu]"`) or JAX's CUDA plugin. What has to be in the environment before jax is
imported is in `tools/aot.py`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
import re
from typing import Any

from moejax.config.knobs import ConfigError, nearest

GIB = 1024**3


@dataclasses.dataclass(frozen=True)
class Chip:
    """Data-sheet figures of an accelerator.

    Attributes:
      platform: what XLA calls it: "tpu" or "cuda".
      hbm: bytes of memory.
      peak: dense bf16 FLOP/s.
      hbm_bandwidth: bytes/s.
      ici: bytes/s that a chip can send over all its fast links together, one way.
      dcn: bytes/s that a chip can send over the slow network, one way (its share of the host's).
      torus: dimensions of the slice's network (2 or 3); 0: a switch, and shapes are hosts x chips.
      largest: most chips of one slice.
      prefix: what libtpu calls it.
      config: libtpu's name of the variant with one device per chip, if there are several.
    """

    platform: str
    hbm: int
    peak: float
    hbm_bandwidth: float
    ici: float
    dcn: float
    torus: int
    largest: int
    prefix: str
    config: str = ""

    @property
    def axis_bandwidth(self) -> float:
        """Bytes/s of a ring along one dimension of the torus: two of a chip's links."""
        return self.ici / self.torus if self.torus else self.ici


# Google: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, tables "key specifications" (read
# 2026-11). Their "bidirectional ICI bandwidth" counts both ways; here is half of it. DCN per chip:
# v5p from its table (50 Gbit/s), v5e and v6e from the pod's 6.4 and 25.6 Tbit/s over 256 chips.
# UNVERIFIED: v4's ICI (2400 Gbit/s) and DCN. H100: NVIDIA's data sheet (SXM); NVLink 900 GB/s is
# both ways; DCN is one 400 Gbit/s port per GPU, as in a DGX (UNVERIFIED for any other).
CHIPS = {
    "v4": Chip("tpu", 32 * GIB, 275e12, 1228e9, 300e9, 6.25e9, 3, 4096, "v4", config="megacore"),
    "v5e": Chip("tpu", 16 * GIB, 197e12, 819e9, 200e9, 3.125e9, 2, 256, "v5e"),
    "v5p": Chip("tpu", 95 * GIB, 459e12, 2765e9, 600e9, 6.25e9, 3, 6144, "v5p"),
    "v6e": Chip("tpu", 32 * GIB, 918e12, 1640e9, 400e9, 12.5e9, 2, 256, "v6e"),
    "h100": Chip("cuda", 80 * 10**9, 989e12, 3350e9, 450e9, 50e9, 0, 65536, "h100"),
}
"""Chips that can be compiled for. XLA keeps part of the memory: the compiler's own verdict decides
whether a program fits."""

SHAPES_2D = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
"""Slices of v5e and v6e that exist (Google's tables of configurations)."""
H100_TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352000000000 l2_cache_size: 52428800 device_memory_size: 80000000000
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 }
device_description_str: "sm_90"
"""
"""XLA's description of an H100 (SXM): limits of compute capability 9.0 (CUDA C++ Programming Guide)
and the data sheet's figures."""
INSTALL_TPU = 'pip install "moejax[tpu]", or: pip install "jax[tpu]==0.10.2"'
INSTALL_GPU = "pip install jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2"


@dataclasses.dataclass(frozen=True)
class Topology:
    """A machine by name.

    Attributes:
      chip: key of `CHIPS`.
      shape: chips along each dimension of one slice.
      slices: how many of them, on a slow network.
    """

    chip: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def figures(self) -> Chip:
        return CHIPS[self.chip]

    @property
    def num_chips(self) -> int:
        """Chips of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def name(self) -> str:
        """As it is written, with the slices in front: `2x v5p:8x8x4`."""
        one = f"{self.chip}:{'x'.join(map(str, self.shape))}"
        return one if self.slices == 1 else f"{self.slices}x {one}"


def parse_topology(text: str, slices: int = 1) -> Topology:
    """A machine from its name, `CHIP:AxBxC`.

    Raises:
      ConfigError: no such chip, a shape that it is not built in, or no slice at all.
    """
    chip, colon, shape_text = text.strip().lower().partition(":")
    if chip not in CHIPS:
        raise ConfigError(
            f"--topology={text}: unknown chip {chip!r}{nearest(chip, list(CHIPS))}; "
            f"known: {', '.join(CHIPS)}"
        )
    figures = CHIPS[chip]
    if not colon or not re.fullmatch(r"\d+(x\d+)*", shape_text):
        raise ConfigError(
            f"--topology={text}: expected CHIP:SHAPE; nearest valid value "
            f"{chip}:{_show(_nearest_shape(figures, ()))}"
        )
    shape = tuple(int(size) for size in shape_text.split("x"))
    if not _exists(figures, shape):
        near = _nearest_shape(figures, shape)
        raise ConfigError(
            f"--topology={text}: {chip} is not built in this shape; nearest valid value "
            f"{chip}:{_show(near)}"
        )
    if slices < 1:
        raise ConfigError(f"--slices={slices}: there is at least one; nearest valid value 1")
    return Topology(chip, shape, slices)


def devices_of(topology: Topology) -> list[Any]:
    """The machine's devices, for a mesh to compile for; nothing can run on them.

    Raises:
      ConfigError: the compiler is not installed, or refuses the shape.
    """
    check_compiler(topology)
    from jax.experimental import topologies

    figures = topology.figures
    options: dict[str, Any] = {}
    if figures.platform == "cuda":
        hosts, chips = topology.shape
        name = ""
        options = {
            "topology": f"{topology.slices}x{hosts}x{chips}",
            "target_config": H100_TARGET,
        }
    else:
        name = f"{figures.prefix}:{_show(topology.shape)}"
        if topology.slices > 1:
            options["num_slices"] = topology.slices
        if figures.config:
            options["chip_config_name"] = figures.config
        if math.prod(topology.shape) == 1:
            options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        description = topologies.get_topology_desc(
            topology_name=name, platform=figures.platform, **options
        )
    except Exception as error:  # the plugins raise several types
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"--topology={topology.name}: the compiler refuses it: {reason}"
        ) from error
    devices = list(description.devices)
    if len(devices) != topology.num_chips:
        raise ConfigError(
            f"--topology={topology.name}: the compiler gives {len(devices)} devices for "
            f"{topology.num_chips} chips; one device per chip is needed"
        )
    return devices


def check_compiler(topology: Topology) -> None:
    """Raises ConfigError, with what to install, when the compiler of a machine is missing."""
    modules, install = {
        "tpu": (("libtpu",), INSTALL_TPU),
        "cuda": (("jax_cuda12_plugin", "jax_cuda13_plugin"), INSTALL_GPU),
    }[topology.figures.platform]
    if not any(importlib.util.find_spec(module) for module in modules):
        raise ConfigError(
            f"--topology={topology.name}: {modules[0]}, which compiles for it, is not installed; "
            f"install it with: {install}"
        )


def _exists(chip: Chip, shape: tuple[int, ...]) -> bool:
    if chip.torus == 0:
        return len(shape) == 2 and 1 <= shape[1] <= 8 and 1 <= math.prod(shape) <= chip.largest
    if chip.torus == 2:
        return shape in SHAPES_2D
    if len(shape) != 3 or math.prod(shape) > chip.largest:
        return False
    small = ((1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
    return shape in small or all(size > 0 and size % 4 == 0 for size in shape)


def _nearest_shape(chip: Chip, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that exists whose sizes differ least, in ratio."""
    if chip.torus == 0:
        hosts, chips = shape if len(shape) == 2 else (1, 8)
        return max(1, hosts), min(max(1, chips), 8)
    options = list(SHAPES_2D)
    if chip.torus == 3:
        sizes = (1, 2, *range(4, 33, 4))
        options = [s for s in itertools.product(sizes, repeat=3) if _exists(chip, s)]
    wanted = shape if math.prod(shape) else (4,) * chip.torus
    padded = (wanted + (1,) * chip.torus)[: chip.torus]

    def distance(option: tuple[int, ...]) -> tuple[float, float]:
        pairs = zip(sorted(option), sorted(padded), strict=True)
        ratio = sum(abs(math.log(a / max(b, 1))) for a, b in pairs)
        return ratio, abs(math.log(math.prod(option) / max(1, math.prod(wanted))))

    return min(options, key=distance)


def _show(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
