"""SIGTERM, SIGINT and SIGUSR2 as a flag that the loop polls: a run stops between two steps."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

from moejax.train.errors import Interrupted

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""SIGUSR2 is what batch systems are often told to send before they end a job."""


class StopSignal:
    """A context in which the first signal asks for a stop instead of killing.

    A handler runs between two bytecodes, so a signal that arrives while XLA compiles is seen as
    soon as the compile returns. Further ones are ignored with a message (schedulers send
    several while the state is being saved). A second SIGINT explains, a third exits at once with
    130 and saves nothing: the last checkpoint stays good, because commits are atomic.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._interrupts = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        # Python delivers signals to the main thread only, and only it may install handlers.
        if threading.current_thread() is threading.main_thread():
            for signum in HANDLED:
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]
        self._previous.clear()

    @property
    def requested(self) -> bool:
        """Whether a stop was asked for."""
        return self.signum != 0

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        del frame
        name = signal.Signals(signum).name
        if signum == signal.SIGINT:
            self._interrupts += 1
        if not self.requested:
            self.signum = signum
            _say(f"{name}: stopping after this step; the state will be saved")
        elif signum == signal.SIGINT and self._interrupts == 2:
            _say("SIGINT again: still saving; once more exits now without saving")
        elif signum == signal.SIGINT and self._interrupts > 2:
            _say("SIGINT for the third time: exiting now, nothing saved")
            os._exit(128 + signum)
        else:
            _say(f"{name} again: already stopping, ignored")


def interrupted_by(signum: int, what: str) -> Interrupted:
    """The exception that ends a run with a signal's exit code."""
    return Interrupted(f"{signal.Signals(signum).name}: {what}", signum)


def _say(text: str) -> None:
    # os.write is safe inside a handler; a print could re-enter a half-finished buffered write.
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{text}\n".encode())
