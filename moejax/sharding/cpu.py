"""Several CPU devices: what XLA has to be told before it starts."""

from __future__ import annotations

import os
import re

import jax

THREADS = 4
"""Threads for each device."""

_DEVICES = re.compile(r"--xla_force_host_platform_device_count=(\d+)")


def give_threads(several: bool = False) -> None:
    """Gives CPU devices enough threads; to be called before anything asks JAX for devices.

    The devices of a process share a pool of as many threads as there are devices or cores. A
    collective waits for the other devices in one of them, and a device may start several that do
    not depend on each other: when each thread waits for another one's, the process aborts after 40
    seconds (seen in tests/sharding, "losses over micro-batches"). XLA takes the size of the pool
    from the variable `NPROC`.

    Args:
      several: there are more devices than those of this process. Where there is one device in all,
        nothing is changed.
    """
    found = _DEVICES.findall(os.environ.get("XLA_FLAGS", ""))
    asked = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]
    devices = max(asked, int(found[-1]) if found else 1)
    if several or devices > 1:
        least = max(THREADS * devices, os.cpu_count() or 1)
        os.environ.setdefault("NPROC", str(least))
