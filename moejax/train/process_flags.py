"""The flags of programs that several processes may run together, defined once."""

from __future__ import annotations

from absl import flags

from moejax.sharding import distributed


def define_process_flags() -> None:
    """Defines --coordinator, --processes, --process, --start_seconds, --heartbeat_seconds.

    The --help of a program that calls this lists them (`cli.usage`).
    """
    flags.DEFINE_string(
        "coordinator", "", "HOST:PORT of process 0, for one of several processes of a run."
    )
    flags.DEFINE_integer("processes", 0, "How many processes the run has.")
    flags.DEFINE_integer("process", -1, "Number of this one, from 0.")
    flags.DEFINE_integer(
        "start_seconds", distributed.START_SECONDS, "How long to wait for the other processes."
    )
    flags.DEFINE_integer(
        "heartbeat_seconds",
        distributed.HEARTBEAT_SECONDS,
        "A process that is silent for so long is dead, and the others end.",
    )


def start_processes() -> None:
    """Meets the other processes that the flags, or the cluster, name (`distributed.start`)."""
    given = flags.FLAGS
    distributed.start(
        given.coordinator,
        given.processes,
        given.process,
        start_seconds=given.start_seconds,
        heartbeat_seconds=given.heartbeat_seconds,
    )
