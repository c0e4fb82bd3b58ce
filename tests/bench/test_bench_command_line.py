"""`python -m tools.bench`: mistakes are one line and exit code 2; the file holds the rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moejax.config import ConfigError
from tools.benchmarks import plan, processes, worker

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def requests(suite="growth", backends=("tiles",), **options):
    defaults = {"quick": False, "peers": False, "allocator": "huge"}
    return plan.requests(suite, backends, **defaults | options)


def bench(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-m", "tools.bench", *arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"suite": "grwoth"}, "--suite=grwoth: no such suite.*growth.*known: targets, "),
        ({"allocator": "hugh"}, "--allocator=hugh: no such regime.*huge"),
        ({"backends": []}, "--backends: names no back end"),
    ],
)
def test_a_mistake_is_told_with_the_nearest_valid_value(options, message):
    with pytest.raises(ConfigError, match=message):
        requests(**options)


def test_without_the_extra_peers_are_refused_with_the_way_to_get_them(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'moejax\[bench\]'.*--no-peers"):
        requests("moe_layer", peers=True)
    assert requests("moe_layer")  # and not needed without peers
    assert requests("growth", peers=True)


def test_the_targets_are_five_processes_per_suite_and_a_quick_look_is_one():
    assert plan.processes("targets", 0, quick=False) == 5
    assert plan.processes("targets", 0, quick=True) == 1
    assert plan.processes("growth", 0, quick=False) == 1
    assert plan.processes("growth", 7, quick=False) == 7
    with pytest.raises(ConfigError, match="--processes=-1"):
        plan.processes("growth", -1, quick=False)
    with pytest.raises(ConfigError, match="--quick is one process"):
        plan.processes("growth", 3, quick=True)


def test_requests_name_suites_and_say_how_much():
    asked = requests("targets", quick=True)
    assert [one["suite"] for one in asked] == list(plan.suites_of("targets"))
    assert all(one["targets_only"] and one["rounds"] == 2 for one in asked)
    (one,) = requests()
    assert not one["targets_only"] and "rounds" not in one


def test_a_wrong_flag_is_one_line():
    done = bench("--suite=moe_layre")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --suite=moe_layre: no such suite")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_without_a_gpu_the_gpu_suite_says_so(monkeypatch, capsys, tmp_path):
    (asked,) = requests("gpu", quick=True)
    monkeypatch.setattr(sys, "argv", ["worker", json.dumps(asked), str(tmp_path / "result.json")])
    with pytest.raises(SystemExit) as end:
        worker.main()
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines() == ["error: --suite=gpu: no GPU, JAX runs on cpu"]


def test_a_request_that_a_process_refuses_ends_the_command_as_a_wrong_flag_does(monkeypatch):
    refused = subprocess.CompletedProcess([], 2)
    monkeypatch.setattr(processes.subprocess, "run", lambda *_, **__: refused)
    with pytest.raises(SystemExit) as end:
        next(processes.measure(requests(), 1, print))
    assert end.value.code == 2


@pytest.mark.slow
def test_a_quick_look_measures_and_writes_its_rows(tmp_path):
    file = tmp_path / "bench.json"
    done = bench(
        *("--suite=growth", "--quick", "--no-peers"),
        *("--backends=no_such,tiles", f"--json={file}"),
    )
    assert done.returncode == 0, done.stderr
    assert "back end no_such is not available" in done.stderr
    made = json.loads(file.read_text())
    assert made["machine"]["allocator"] == "huge"
    assert made["machine"]["variables"]["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    absent, measured = sorted(made["rows"], key=lambda row: row["backend"])
    assert (absent["ratio"], absent["verdict"]) == (None, "not available")
    assert measured["ratio"] > 0
    assert measured["target"] == "<= 1.7"
    assert measured["verdict"] in ("met", "at target within noise", "missed")
    assert measured["shape"] in done.stdout
