import json
import os
import threading

import numpy as np
import pytest

from moejax.config import ConfigError, read_json, write_bytes_atomic, write_json


def test_json_round_trip_is_readable_and_sorted(tmp_path):
    path = tmp_path / "deep" / "config.json"
    write_json(path, {"b": (1, 2), "a": {"ü": None}})
    assert path.read_text() == '{\n  "a": {\n    "ü": null\n  },\n  "b": [\n    1,\n    2\n  ]\n}\n'
    assert read_json(path) == {"a": {"ü": None}, "b": [1, 2]}


def test_numpy_scalars_become_numbers(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"i": np.int64(3), "f": np.float32(0.5), "z": np.array(True)})
    assert read_json(path) == {"i": 3, "f": 0.5, "z": True}


@pytest.mark.parametrize(
    "obj, message",
    [
        ({"a": [1, float("nan")]}, "a.1=nan is not finite; use null"),
        ({"a": np.float32("inf")}, "a=inf is not finite; use null"),
        ({"a": {1: 2}}, "the key a.1 is not a string"),
        ({"a": {1, 2}}, "a={1, 2} of type set is not JSON"),
        (float("nan"), "the value=nan is not finite"),
    ],
)
def test_what_json_cannot_hold_is_refused_and_the_old_file_stays(tmp_path, obj, message):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    with pytest.raises(ConfigError) as caught:
        write_json(path, obj)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is empty; expected JSON"),
        ('{"a": 1, "b": [1,', "is cut short, line 1 column"),
        ('{"a": "unfin', "is cut short, line 1 column"),
        ("{'a': 1}", "is not JSON (Expecting property name"),
        ('{"a": NaN}', "holds NaN, which is not JSON"),
        (b"\xff\xfe\x00", "is not JSON (not UTF-8 text"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, text, message):
    path = tmp_path / "status.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_every_truncation_of_a_file_is_noticed(tmp_path):
    path = tmp_path / "x.json"
    whole = json.dumps({"a": [1, {"b": "text"}], "c": None})
    for length in range(len(whole)):
        path.write_text(whole[:length])
        with pytest.raises(ConfigError, match=r"x\.json: "):
            read_json(path)


def test_a_missing_file_suggests_its_neighbour(tmp_path):
    write_json(tmp_path / "config.json", {})
    with pytest.raises(ConfigError) as caught:
        read_json(tmp_path / "confg.json")
    assert str(caught.value) == (
        f"{tmp_path}/confg.json: no such file; did you mean 'config.json'?"
    )
    with pytest.raises(ConfigError, match=r"nowhere/x\.json: no such file$"):
        read_json(tmp_path / "nowhere" / "x.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_json(tmp_path)


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "x.bin"
    write_bytes_atomic(path, b"old")

    def fail(source, target):
        raise OSError("disk on fire")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk on fire"):
        write_bytes_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_durable_writes_reach_the_disk_before_the_rename(tmp_path, monkeypatch):
    order = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("sync"), sync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b))[1])
    write_bytes_atomic(tmp_path / "a", b"1")
    assert order == ["sync", "replace", "sync"]
    order.clear()
    write_bytes_atomic(tmp_path / "a", b"1", durable=False)
    assert order == ["replace"]


def test_readers_never_see_half_a_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"n": -1, "pad": []})
    stop = threading.Event()
    problems = []

    def read():
        while not stop.is_set():
            try:
                found = read_json(path)
                if found["pad"] != [found["n"]] * len(found["pad"]):
                    problems.append(found)
            except ConfigError as error:
                problems.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for n in range(50):
        write_json(path, {"n": n, "pad": [n] * 500})
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []


def test_a_very_long_name_can_be_written(tmp_path):
    path = tmp_path / ("n" * 250)
    write_bytes_atomic(path, b"x")
    assert path.read_bytes() == b"x"
