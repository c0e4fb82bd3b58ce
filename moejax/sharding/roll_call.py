"""Are all processes there? A question over plain TCP, asked before JAX starts."""

from __future__ import annotations

import contextlib
import socket
import time

from moejax.config.knobs import ConfigError

_RETRY_SECONDS = 0.2
_GRACE_SECONDS = 5.0
_PRESENT = "all present"


class MissingProcessError(Exception):
    """A process of a run did not come in time; one line says which."""


def roll_call(coordinator: str, processes: int, process: int, seconds: float) -> None:
    """Returns when all processes have called it.

    Process 0 listens at the coordinator's address, the others connect and say their number.

    Args:
      coordinator: HOST:PORT of process 0; the port is free again afterwards.

    Raises:
      MissingProcessError: some have not come within `seconds`, or one number came twice; in every
        process that did come.
      ConfigError: the port is in use.
    """
    host, _, port = coordinator.rpartition(":")
    host = host.strip("[]")
    if process == 0:
        _listen(host, int(port), processes, seconds)
    else:
        _report(host, int(port), processes, process, seconds)


def _listen(host: str, port: int, processes: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    present: set[int] = set()
    connections: list[socket.socket] = []
    problem = ""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_server(host, port))
        while len(present) < processes - 1 and not problem:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                connection = stack.enter_context(server.accept()[0])
            except TimeoutError:
                break
            said = _line(connection, deadline).split()
            connections.append(connection)
            if len(said) != 3 or said[0] != "moejax" or not all(x.isdigit() for x in said[1:]):
                continue  # somebody else's connection
            number, of = int(said[1]), int(said[2])
            if of != processes:
                problem = (
                    f"process {number} was started as one of {of}, process 0 as one of {processes}"
                )
            elif number in present or number == 0:
                problem = f"two processes were started as number {number} of {processes}"
            present.add(number)
        if not problem:
            missing = [i for i in range(1, processes) if i not in present]
            if missing:
                problem = (
                    f"{_named(missing)} of {processes} did not start within {seconds:g} s "
                    f"(coordinator {host}:{port})"
                )
        for connection in connections:
            with contextlib.suppress(OSError):  # it died meanwhile: the heartbeat will tell
                connection.sendall(f"{problem or _PRESENT}\n".encode())
    if problem:
        raise MissingProcessError(problem)


def _report(host: str, port: int, processes: int, process: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    missing = (
        f"process 0 of {processes} did not start within {seconds:g} s (coordinator {host}:{port})"
    )
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=_RETRY_SECONDS * 5)
            break
        except OSError as error:  # it does not listen yet, or its name is not known yet
            if time.monotonic() >= deadline:
                raise MissingProcessError(f"{missing}: {error}") from error
            time.sleep(_RETRY_SECONDS)
    with connection:
        connection.sendall(f"moejax {process} {processes}\n".encode())
        # Process 0 may have started to wait later than this one.
        verdict = _line(connection, time.monotonic() + seconds + _GRACE_SECONDS)
    if not verdict:
        raise MissingProcessError(f"process 0 of {processes} ended during the roll call")
    if verdict != _PRESENT:
        raise MissingProcessError(verdict)


def _server(host: str, port: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=4096)
    except OSError as error:
        raise ConfigError(
            f"--coordinator={host}:{port}: process 0 cannot listen there "
            f"({error.strerror}); choose another port"
        ) from error


def _line(connection: socket.socket, deadline: float) -> str:
    """What the other side says up to a newline; empty if it says nothing whole in time."""
    said = b""
    try:
        while not said.endswith(b"\n") and len(said) < 10_000:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            piece = connection.recv(1024)
            if not piece:
                return ""
            said += piece
    except OSError:
        return ""
    return said.decode(errors="replace").strip()


def _named(missing: list[int]) -> str:
    some = ", ".join(map(str, missing[:20])) + (", ..." if len(missing) > 20 else "")
    return f"process{'es' if len(missing) > 1 else ''} {some}"
