"""Event loops that end what was begun on them.

Orbax reads all arrays of a checkpoint at once, on an event loop of its own. Where one of them
cannot be read it leaves at once: the others are still being read, and what they say later goes to a
loop that is closed, as pages of tracebacks on stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator


class _PatientLoop(asyncio.SelectorEventLoop):
    def close(self) -> None:
        """Waits for every task, whatever it raises, and closes."""
        left = [] if self.is_closed() else [*asyncio.all_tasks(self)]
        if left:
            self.run_until_complete(asyncio.wait(left))
            for task in left:
                _ = task.cancelled() or task.exception()  # seen: nobody else will ask
        super().close()


class _PatientPolicy(asyncio.DefaultEventLoopPolicy):
    _loop_factory = _PatientLoop


@contextlib.contextmanager
def patient_loops() -> Iterator[None]:
    """New event loops of this process wait, when they are closed, for tasks that are not done."""
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_PatientPolicy())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(before)
