"""Processes that build at once, or die while they build."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from data_samples import files_config, records, write_jsonl

from moejax.data import prepare

REPOSITORY = Path(__file__).resolve().parent.parent.parent

# A child prepares the config it reads, reports each stage once, and may kill itself at one.
CHILD = """
import json, os, signal, sys, time
from moejax.data import DataConfig, prepare
config, fatal = json.loads(sys.stdin.readline())
config["domains"] = tuple(config["domains"])
seen = []
def progress(stage, done, total):
    if stage not in seen:
        seen.append(stage)
    if stage == "reading text" and not done:
        time.sleep(1.0)
    if stage == fatal and done:
        os.kill(os.getpid(), signal.SIGKILL)
print("ready", flush=True)
sys.stdin.readline()
dataset = prepare(DataConfig(**config), progress)
print(json.dumps([dataset.manifest_hash, seen]))
"""


def start(config, fatal=""):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    child.stdin.write(json.dumps([vars(config), fatal]) + "\n")
    child.stdin.flush()
    return child


def finish(*children):
    """Lets them go when all have imported everything; returns (exit code, output) of each."""
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    outputs = [child.communicate(timeout=120)[0] for child in children]
    return [(child.returncode, output) for child, output in zip(children, outputs, strict=True)]


STAGES = ("storing text", "tokenising train", "counting")


def test_killed_while_building(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", records(8))
    configs = [files_config(tmp_path, cache_dir=str(tmp_path / str(i))) for i in range(3)]
    children = [start(config, stage) for config, stage in zip(configs, STAGES, strict=True)]
    assert [code for code, _ in finish(*children)] == [-signal.SIGKILL] * 3
    clean = prepare(files_config(tmp_path))
    for config in configs:
        assert list(config.cache_path.glob(".building-*")), "it was killed before it began"
        assert not list(config.cache_path.glob("tokens-*/manifest.json"))
        dataset = prepare(config)
        dataset.verify()
        assert not list(config.cache_path.glob(".building-*"))
        assert dataset.manifest_hash == clean.manifest_hash


def test_two_at_once_build_once(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", records(8))
    config = files_config(tmp_path)
    results = finish(start(config), start(config))
    assert [code for code, _ in results] == [0, 0]
    (first, stages), (second, others) = (json.loads(output) for _, output in results)
    assert first == second
    waited = "waiting for another process"
    assert sorted([waited in stages, waited in others]) == [False, True]
    assert sorted([stages == [waited], others == [waited]]) == [False, True]
    assert not list(config.cache_path.glob(".building-*"))
