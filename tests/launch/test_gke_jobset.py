"""The JobSet manifest: one that is kept in full, GKE's names of things, refusals in one line."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from launched import PYTHON, REPOSITORY

from moejax.config import ConfigError
from moejax.grid.launchers.jobset import hosts_and_chips, jobset
from moejax.sharding.topology import parse_topology

KEPT = Path(__file__).parent / "jobset_v5p_two_slices.yaml"
FULL = [
    "--name=moe",
    "--image=us-docker.pkg.dev/p/r/moejax:1",
    "--topology=v5p:4x4x4",
    "--slices=2",
    "--queue=tpus",
    "--volume=runs",
    "--env=LIBTPU_INIT_ARGS=--a=b --c=d",
    "--",
    "--config=configs/lm.py:size=base,moe=top_p",
    "--config.note=$(x) 'y'",
    "--workdir=/volume/p",
]


FORKS = """
import json, os, runpy, sys
import moejax.grid.launchers.jobset, moejax.train.cli  # once for all
for words in json.load(sys.stdin):
    if os.fork() == 0:
        sys.stderr = sys.stdout
        sys.argv = ["gke_jobset", *words]
        runpy.run_module("tools.launch.gke_jobset", run_name="__main__")
    print(f"\\nends with {os.waitstatus_to_exitcode(os.wait()[1])}", flush=True)
"""


def call(*command_lines):
    """What the program prints for each command line, on either stream, and its exit code."""
    done = subprocess.run(
        [PYTHON, "-c", FORKS],
        cwd=REPOSITORY,
        input=json.dumps(command_lines),
        capture_output=True,
        text=True,
        check=True,
    )
    ends = re.findall(r"(.*?)\nends with (\d+)\n", done.stdout, re.S)
    return [(text, int(code)) for text, code in ends]


def test_the_manifest_of_two_slices_is_the_one_that_was_kept():
    # To be looked at, and validated against JobSet's CRD, when it changes on purpose.
    [(text, code)] = call(FULL)
    assert code == 0, text
    assert yaml.safe_load(text) == yaml.safe_load(KEPT.read_text())


def test_wrong_use_is_one_line_and_nothing_else_is_printed():
    wrong = {
        "--name: is required": FULL[1:],
        "--image: is required": [FULL[0], *FULL[2:]],
        "--topology: is required": [*FULL[:2], *FULL[3:]],
        "--: is required": FULL[: FULL.index("--")],
        "topologie": ["--topologie=v5p:4x4x4", *FULL],
        "nearest valid value v5p:": [*FULL[:2], "--topology=v5p:3x3x3", *FULL[3:]],
    }
    answers = call(*wrong.values())
    for complaint, (text, code) in zip(wrong, answers, strict=True):
        assert code == 2 and text.startswith("error: ") and complaint in text, text
        assert text.count("\n") == 1, text


# Google's tables of topologies (cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus): nodes
# of machine types with 4 chips, and of the one with 1.
@pytest.mark.parametrize(
    "name, hosts, chips, accelerator",
    [
        ("v4:2x2x1", 1, 4, "tpu-v4-podslice"),
        ("v4:4x4x8", 32, 4, "tpu-v4-podslice"),
        ("v5e:1x1", 1, 1, "tpu-v5-lite-podslice"),
        ("v5e:2x4", 2, 4, "tpu-v5-lite-podslice"),
        ("v5e:16x16", 64, 4, "tpu-v5-lite-podslice"),
        ("v5p:2x2x1", 1, 4, "tpu-v5p-slice"),
        ("v5p:8x8x16", 256, 4, "tpu-v5p-slice"),
        ("v6e:4x4", 4, 4, "tpu-v6e-slice"),
    ],
)
def test_every_host_of_a_slice_has_a_pod_that_asks_for_all_its_chips(
    name, hosts, chips, accelerator
):
    topology = parse_topology(name)
    assert hosts_and_chips(topology) == (hosts, chips)
    [slices] = jobset("n", "i", topology, ["--a"])["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    pod = job["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"]) == (1, hosts, hosts)
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": name.partition(":")[2],
    }


@pytest.mark.parametrize(
    "topology, change, complaint",
    [
        (("h100:2x8",), {}, "--topology=h100:2x8: is no TPU"),
        (("v5p:1x1x1",), {}, "nearest valid value v5p:2x2x1"),
        (("v6e:2x2", 2), {}, "--slices=2: slices of one host cannot be joined"),
        (("v6e:4x4",), {"name": "Moe"}, "--name=Moe: expected"),
        (("v6e:4x4",), {"name": "m" * 41}, "expected up to 40"),
        (("v6e:4x4",), {"restarts": -1}, "--restarts=-1: nearest valid value 0"),
        (("v6e:4x4",), {"env": ["A"]}, "--env=A: expected NAME=VALUE"),
    ],
)
def test_what_gke_would_refuse_is_refused(topology, change, complaint):
    arguments = {"name": "n", "image": "i"} | change
    with pytest.raises(ConfigError, match=complaint):
        jobset(topology=parse_topology(*topology), train=["--a"], **arguments)
