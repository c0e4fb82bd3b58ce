"""Event loops that wait for what was begun on them."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from typing import Any

import pytest

from moejax.train.patience import patient_loops


async def fail() -> None:
    raise KeyError("damaged")


def reading(ended: list[str]) -> Any:
    """Two reads at once: one fails at once, the other, by a thread, a little later."""

    async def slow() -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        answer = threading.Timer(0.05, lambda: loop.call_soon_threadsafe(done.set_result, None))
        answer.start()
        await done
        ended.append("slow")
        raise ValueError("damaged as well")

    async def both() -> None:
        await asyncio.gather(slow(), fail())

    return both()


def test_a_loop_ends_what_was_begun_on_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lost: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)
    ended: list[str] = []
    usual = asyncio.get_event_loop_policy()
    with patient_loops():
        loop = asyncio.new_event_loop()
        with pytest.raises(KeyError):
            loop.run_until_complete(reading(ended))
        loop.close()
    assert ended == ["slow"]
    gc.collect()
    assert not lost and not caplog.records
    assert asyncio.get_event_loop_policy() is usual


def test_ctrl_c_waits_for_nothing() -> None:
    async def read() -> None:
        asyncio.get_running_loop().call_later(0.01, interrupt)
        await asyncio.sleep(3600)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with patient_loops():
        loop = asyncio.new_event_loop()
    task = loop.create_task(read())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(task)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()
