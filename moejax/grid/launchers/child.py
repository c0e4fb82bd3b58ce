"""The first moments of a cell's process: `child.py PARENT CORES COMMAND...`, then it is COMMAND.

CORES is a list like 0,2 or - for all. Run as a script, so that it imports nothing of moejax: it is
over in a hundredth of a second. When the parent dies, however it dies, the process gets SIGTERM:
training saves its state and ends, and nothing goes on that nobody watches.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
EXIT_ORPHAN = 128 + int(signal.SIGTERM)


def main(parent: int, cores: str, command: list[str]) -> None:
    """Becomes `command`."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the line above
        sys.exit(EXIT_ORPHAN)
    if cores != "-":
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
