"""The commands of docs/cluster.md for clouds run as they are written, but for the clouds."""

import os
import re
import shlex
import subprocess

import pytest
import yaml
from launched import PYTHON, REPOSITORY

STANDIN = """#!/bin/bash
printf '%q ' "${0##*/}" "$@" >>"$CALLS"; echo >>"$CALLS"
[[ "$*" != "apply -f -" ]] || cat >"$CALLS.manifest"
"""


@pytest.fixture
def called(tmp_path):
    """Runs the blocks of some sections in one shell; the words of each call of a cloud's tool."""
    for name in ("gcloud", "docker", "kubectl", "xpk"):
        (tmp_path / name).write_text(STANDIN)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "git").write_text('#!/bin/bash\n[[ $3 != status ]] && touch "${4#--output=}"\n')
    (tmp_path / "git").chmod(0o755)
    calls = tmp_path / "calls"

    def run(*sections):
        text = (REPOSITORY / "docs" / "cluster.md").read_text()
        parts = [text.split(f"\n## {name}\n")[1].split("\n## ")[0] for name in sections]
        blocks = [
            block for part in parts for block in re.findall(r"^```\n(.*?)^```$", part, re.M | re.S)
        ]
        path = f"{tmp_path}:{PYTHON.parent}:{os.environ['PATH']}"
        subprocess.run(
            ["bash", "-euc", "".join(blocks)],
            env=os.environ | {"PATH": path, "CALLS": str(calls)},
            cwd=REPOSITORY,
            check=True,
        )
        return [shlex.split(line) for line in calls.read_text().splitlines()]

    return run


def test_tpu_vm(called):
    calls = called("TPU VM")
    assert [call[:4] for call in calls[:2]] == [
        ["gcloud", "compute", "tpus", "queued-resources"]
    ] * 2
    assert all(call[:4] == ["gcloud", "compute", "tpus", "tpu-vm"] for call in calls[2:])
    told = [word for call in calls for word in call if word.startswith("--command=")]
    for action in ("setup", "start", "log", "status", "stop"):
        assert any(f"tpu_worker.sh {action}" in word for word in told), action
    started = next(word for word in told if "tpu_worker.sh start" in word)
    assert "--config.checkpoint.dir=gs://my-bucket/runs/p" in shlex.split(started)


def test_gke_and_xpk(called, tmp_path):
    calls = called("GKE", "XPK")
    assert [call[:2] for call in calls if call[0] != "xpk"] == [
        ["docker", "build"],
        ["docker", "push"],
        ["kubectl", "apply"],
        ["kubectl", "logs"],
        ["kubectl", "delete"],
    ]
    manifest = yaml.safe_load((tmp_path / "calls.manifest").read_text())
    [slices] = manifest["spec"]["replicatedJobs"]
    [container] = slices["template"]["spec"]["template"]["spec"]["containers"]
    assert slices["replicas"] == 2 and container["image"] == calls[0][2].partition("=")[2]
    created = next(call for call in calls if call[:3] == ["xpk", "workload", "create"])
    command = next(word for word in created if word.startswith("--command="))
    assert command == "--command=exec " + " ".join(container["command"])
    assert f"--docker-image={container['image']}" in created
