"""Event loops that end what was begun on them.

Orbax reads all arrays of a checkpoint at once, on an event loop of its own. Where one of them
cannot be read it leaves at once: the others are still being read, and what they say later goes to a
loop that is closed, as pages of tracebacks on stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any


class _PatientLoop(asyncio.SelectorEventLoop):
    def run_until_complete(self, future: Any) -> Any:
        """After an error, waits for every other task, whatever it raises. Not after Ctrl-C."""
        try:
            return super().run_until_complete(future)
        except Exception:
            left = asyncio.all_tasks(self)
            if left:
                super().run_until_complete(asyncio.wait(left))
                for task in left:
                    _ = task.cancelled() or task.exception()  # seen: nobody else will ask
            raise


class _PatientPolicy(asyncio.DefaultEventLoopPolicy):
    _loop_factory = _PatientLoop


@contextlib.contextmanager
def patient_loops() -> Iterator[None]:
    """New event loops of this process wait, after an error, for tasks that are not done."""
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_PatientPolicy())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(before)
