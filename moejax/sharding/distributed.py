"""Several processes, one program: who is there, and messages between them.

`start` decides from flags or from the environment whether this process is one of several. Before
JAX's own start there is a roll call over plain TCP, because a JAX client whose peers do not come
aborts the process, and says neither who is missing nor anything that Python could catch.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Mapping
from typing import Any

import jax
from jax._src import clusters, distributed  # what jax.distributed knows has no public names

from moejax.config.knobs import ConfigError
from moejax.sharding.cpu import give_threads
from moejax.sharding.roll_call import MissingProcessError, roll_call

START_SECONDS = 300
HEARTBEAT_SECONDS = 100
_MESSAGE_SECONDS = 24 * 3600
"""The heartbeat, not this, ends a wait for a process that died."""

CLUSTERS: dict[str, tuple[str, ...]] = {
    "SlurmCluster": ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID"),
    "OmpiCluster": ("OMPI_MCA_orte_hnp_uri",),
    "K8sCluster": ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"),
}
"""By the name of JAX's class, variables without which its detection is not even asked: outside of a
Slurm step or an indexed job this process is alone. (TPU VMs and GKE are known by their TPU.)"""


@dataclasses.dataclass(frozen=True)
class Place:
    """One process among `processes`; process 0 listens at `coordinator` (HOST:PORT).

    `local_devices`: numbers of the GPUs of this process; None: all that it sees.
    """

    coordinator: str
    processes: int
    process: int
    local_devices: tuple[int, ...] | None = None


def start(
    coordinator: str = "",
    processes: int = 0,
    process: int = -1,
    *,
    start_seconds: int = START_SECONDS,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
) -> bool:
    """Joins the other processes; True if there are any. To be called before anything asks JAX for
    devices; a process that is alone does not wait.

    Args:
      coordinator, processes, process: all three, or none to detect Slurm, GKE, a TPU VM, MPI.
      start_seconds: how long to wait for the others.
      heartbeat_seconds: a process that is silent for so long is dead, and the others end.

    Raises:
      ConfigError: flags that make no sense.
      MissingProcessError: a process did not come; the message names it.
    """
    for name, seconds in (("start", start_seconds), ("heartbeat", heartbeat_seconds)):
        if seconds < 1:
            raise ConfigError(f"--{name}_seconds={seconds}: nearest valid value 1")
    given = bool(coordinator) or processes != 0 or process != -1
    if given:
        place = checked_place(coordinator, processes, process)
    else:
        found = detect(os.environ, start_seconds)
        if found is None:
            return False
        place = found
    if place.processes == 1:
        return False
    give_threads(several=True)
    roll_call(place.coordinator, place.processes, place.process, start_seconds)
    # It would take SIGTERM for itself; moejax.train.votes agrees on where to stop.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.processes,
            place.process,
            local_device_ids=place.local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=start_seconds,
            heartbeat_timeout_seconds=heartbeat_seconds,
            # A process that fails alone waits at its exit for the others, who wait for it.
            shutdown_timeout_seconds=heartbeat_seconds,
        )
    except RuntimeError as error:
        raise MissingProcessError(
            f"process {place.process} of {place.processes}: jax.distributed did not start: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return True


def checked_place(coordinator: str, processes: int, process: int) -> Place:
    """A place from flags.

    Raises:
      ConfigError: one is missing or out of range.
    """
    for given, flag in (
        (coordinator, "--coordinator=HOST:PORT"),
        (processes != 0, "--processes=N"),
        (process != -1, "--process=I"),
    ):
        if not given:
            raise ConfigError(
                f"{flag}: is missing; --coordinator, --processes and --process go together"
            )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ConfigError(
            f"--coordinator={coordinator}: expected HOST:PORT of process 0, e.g. localhost:12345"
        )
    if processes < 1:
        raise ConfigError(f"--processes={processes}: nearest valid value 1")
    if not 0 <= process < processes:
        near = min(max(process, 0), processes - 1)
        raise ConfigError(
            f"--process={process}: {processes} processes are numbered from 0; nearest valid value "
            f"{near}"
        )
    return Place(coordinator, processes, process)


def detect(environ: Mapping[str, str], seconds: int) -> Place | None:
    """The place that a cluster gave this process; None when it is alone.

    JAX's own classes read the environment (and, on a TPU VM, its metadata server).
    """
    for kind in clusters.ClusterEnv._cluster_types:
        needs = CLUSTERS.get(kind.__name__, ())
        if kind.opt_in_only_method or not all(name in environ for name in needs):
            continue
        if not kind.is_env_present():
            continue
        processes = kind.get_process_count()
        if processes == 1:
            return None
        address = kind.get_coordinator_address(seconds, environ.get("JAX_COORDINATOR_PORT"))
        local = None
        if kind.name == "slurm":
            local = _slurm_gpu(environ)
        elif kind.name == "ompi":
            local = kind.get_local_process_id()
        return Place(address, processes, kind.get_process_id(), None if local is None else (local,))
    return None


def _slurm_gpu(environ: Mapping[str, str]) -> int | None:
    """The GPU of a Slurm task, where several tasks of a node share all of its GPUs."""
    tasks, nodes = (int(environ.get(f"SLURM_{n}", 0)) for n in ("NTASKS", "STEP_NUM_NODES"))
    bound = "SLURM_GPUS_PER_TASK" in environ  # then a task sees only its own
    return int(environ["SLURM_LOCALID"]) if tasks > nodes > 0 and not bound else None


_numbers = itertools.count()


def exchange(text: str) -> list[str]:
    """The texts of all processes, by number; a barrier as well. All must call it equally often.

    It goes through the coordinator's memory, not through devices: a few messages per process.
    """
    if jax.process_count() == 1:
        return [text]
    client: Any = distributed.global_state.client
    count, own = jax.process_count(), jax.process_index()
    key, limit = f"moejax/{next(_numbers)}", _MESSAGE_SECONDS * 1000
    # A value may not be empty.
    client.key_value_set(f"{key}/{own}", "=" + text)
    return [client.blocking_key_value_get(f"{key}/{i}", limit)[1:] for i in range(count)]
