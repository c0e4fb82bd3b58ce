"""Several CPU devices get threads enough; one device is left as it is."""

import os

import pytest

from moejax.sharding.cpu import give_threads

EIGHT = "--xla_force_host_platform_device_count=8"


@pytest.mark.parametrize(
    "flags, given, several, expected",
    [
        ("", None, False, None),
        ("--xla_dump_to=x", None, False, None),
        (f"--xla_dump_to=x {EIGHT}", None, False, "32"),
        ("", None, True, "4"),
        (EIGHT, "3", True, "3"),  # somebody's choice
    ],
)
def test_threads_of_several_devices(monkeypatch, flags, given, several, expected):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv("NPROC", given or "")
    if given is None:
        monkeypatch.delenv("NPROC")
    give_threads(several)
    assert os.environ.get("NPROC") == expected
