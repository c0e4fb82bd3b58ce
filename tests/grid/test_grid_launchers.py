"""Launchers that write out what others start: kept files, refusals in one line; the displays."""

import dataclasses
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from grid_roots import Root, cell

from moejax.config import ConfigError
from moejax.grid.arguments import Arguments
from moejax.grid.commands.run import claimable
from moejax.grid.launchers import Spec
from moejax.grid.launchers.choose import FLAGS, choose
from moejax.grid.launchers.jobset import jobset
from moejax.grid.launchers.kubernetes import Kubernetes
from moejax.grid.launchers.printed import Printer
from moejax.grid.launchers.remote import elsewhere, job_name
from moejax.grid.launchers.slurm import _parameters
from moejax.grid.launchers.tpu import QueuedResources, accelerator_type
from moejax.grid.live import LiveDisplay, PlainDisplay, make_display
from moejax.grid.places import Places
from moejax.grid.status import CellState
from moejax.sharding.topology import parse_topology

HERE = Path(__file__).parent
SPECS = [
    Spec(
        name=f"router={router},seed=1",
        directory=f"router={router},seed=1-{number:010x}",
        argv=(f"--config=configs/lm.py:size=base,moe={router}", "--config.note=$(x) 'y'"),
        workdir=f"/home/me/runs/routers/router={router},seed=1-{number:010x}",
    )
    for number, router in ((0xABC, "top_p"), (0xDEF, "top_k"))
]
CLUSTER = {"image": "us-docker.pkg.dev/p/r/moejax:1", "topology": "v5p:4x4x4", "slices": 2}
CLUSTER |= {"queue": "tpus", "volume": "runs", "remote_root": "/volume/routers"}
TPU = {"topology": "v5e:4x4", "zone": "us-east5-a", "remote_root": "gs://bucket/routers"}
# To be looked at when they change on purpose: `python tests/grid/test_grid_launchers.py`.
KEPT = {
    "grid_jobsets.json": Kubernetes("routers", **CLUSTER, env=["A=b c"]),
    "grid_tpu.sh": QueuedResources("routers", **TPU),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_written_out_is_what_was_kept(name):
    assert KEPT[name].render(SPECS) == (HERE / name).read_text()


def test_the_jobsets_are_those_of_single_runs_with_the_cells_flags():
    items = json.loads(KEPT["grid_jobsets.json"].render(SPECS))["items"]
    [_, other] = items
    flags = [*SPECS[1].argv, f"--workdir=/volume/routers/{SPECS[1].directory}"]
    alone = jobset(
        "routers-0000000def", CLUSTER["image"], parse_topology("v5p:4x4x4", 2), flags,
        queue="tpus", volume="runs", env=["A=b c"],
    )  # fmt: skip
    alone["metadata"]["annotations"]["moejax/cell"] = SPECS[1].name
    assert other == alone
    assert len({item["metadata"]["name"] for item in items}) == 2


def test_the_script_for_tpus_is_bash_whose_words_arrive_whole(tmp_path):
    script = tmp_path / "script.sh"
    text = KEPT["grid_tpu.sh"].render(SPECS)
    script.write_text(text)
    subprocess.run(["bash", "-n", str(script)], check=True)
    start = next(line for line in text.splitlines() if " start " in line)
    words = shlex.split(start)
    assert words[words.index("--") + 1 :] == elsewhere(SPECS[0], TPU["remote_root"])


def test_commands_that_are_printed_run_as_they_are(tmp_path, monkeypatch):
    # A stand-in for the package, which says what it was told.
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").touch()
    (tmp_path / "experiments" / "train.py").write_text("import sys; print(sys.argv[1:])")
    monkeypatch.chdir(tmp_path)
    printed = Printer().render(SPECS)
    done = subprocess.run(
        ["bash", "-c", printed], cwd="/", capture_output=True, text=True, check=True
    )
    told = [[*spec.argv, f"--workdir={spec.workdir}"] for spec in SPECS]
    assert done.stdout.splitlines() == [str(words) for words in told]


def test_checkpoints_go_to_a_bucket_where_disks_do_not_stay():
    *_, store, workdir = elsewhere(SPECS[0], "gs://b/r/")
    assert store == f"--config.checkpoint.dir=gs://b/r/{SPECS[0].directory}"
    assert workdir == f"--workdir=/tmp/moejax/{SPECS[0].directory}"


@pytest.mark.parametrize("grid", ["routers", "Top_P Threshold!", "9lives", "---", "x" * 300, "é"])
def test_names_of_jobs_are_names_everywhere(grid):
    name = job_name(grid, "router=../../etc,seed=1-00000ABCDE")
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name) and name.endswith("-00000abcde")


@pytest.mark.parametrize(
    "topology, found",
    [
        ("v4:4x4x4", ("v4-128", "tpu-ubuntu2204-base")),
        ("v5e:4x4", ("v5litepod-16", "v2-alpha-tpuv5-lite")),
        ("v5p:2x2x2", ("v5p-16", "v2-alpha-tpuv5")),
        ("v6e:16x16", ("v6e-256", "v2-alpha-tpuv6e")),
    ],
)
def test_accelerator_types_count_as_google_does(topology, found):
    assert accelerator_type(parse_topology(topology)) == found


K8S = {"launcher": "kubernetes", **CLUSTER}


@pytest.mark.parametrize(
    "flags, complaint",
    [
        ({"launcher": "locl"}, "--launcher=locl: unknown launcher; did you mean 'local'"),
        ({"launcher": "ray"}, "--launcher=ray: unknown launcher; known: local, slurm"),
        ({"image": "x"}, "--image: means nothing to --launcher=local; it is for kubernetes"),
        ({"launcher": "print", "timeout": 3.0}, "--timeout: means nothing to --launcher=print"),
        (K8S | {"image": ""}, "--image: --launcher=kubernetes needs it"),
        (K8S | {"remote_root": ""}, "--remote-root: --launcher=kubernetes needs it"),
        (K8S | {"volume": ""}, "a pod's own disk goes with the pod"),
        (K8S | {"remote_root": "/runs"}, "nearest valid value /volume/runs"),
        (K8S | {"topology": "h100:2x8"}, "is no TPU"),
        ({"launcher": "tpu", **TPU, "zone": ""}, "--zone: --launcher=tpu needs it"),
        ({"launcher": "tpu", **TPU, "remote_root": "/x"}, "a slice's disk goes with the slice"),
        ({"launcher": "tpu", **TPU, "slices": 2}, "nearest valid value 1"),
        ({"max_parallel": 1000}, "nearest valid value"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(tmp_path, flags, complaint):
    with pytest.raises(ConfigError) as told:
        choose(Arguments(**flags), Places(tmp_path), "g")
    assert complaint in str(told.value) and "\n" not in str(told.value)


def test_every_launcher_can_be_chosen(tmp_path, monkeypatch):
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    needed = {"kubernetes": CLUSTER, "tpu": TPU}
    for name in FLAGS:
        launcher = choose(
            Arguments(launcher=name, **needed.get(name, {})), Places(tmp_path / "root"), "g"
        )
        assert launcher.name == name
        assert isinstance(launcher, Printer) == (name not in ("local", "slurm"))
    assert {field.name for field in dataclasses.fields(Arguments)} >= set().union(*FLAGS.values())


def test_without_submitit_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"needs submitit; pip install 'moejax\[slurm\]'"):
        choose(Arguments(launcher="slurm"), Places(tmp_path), "g")


def test_options_of_sbatch():
    known = {"time", "cpus_per_task", "partition"}
    assert _parameters(["partition=long", "time=30", "--licenses=a", "mem-bind=b"], known) == {
        "time": 30,
        "cpus_per_task": 1,
        "partition": "long",
        "additional_parameters": {"licenses": "a", "mem_bind": "b"},
    }
    for wrong in ("partition", "=x", "time="):
        with pytest.raises(ConfigError, match="expected NAME=VALUE"):
            _parameters([wrong], known)
    with pytest.raises(ConfigError, match="expected minutes"):
        _parameters(["time=1:00:00"], known)


# ---- displays


CELLS = [cell(f"p=0.{i}") for i in range(30)]
STATES = {one.directory: CellState("pending") for one in CELLS} | {
    CELLS[0].directory: CellState("done", loss=2.0, step=9, total_steps=9, seconds=5.0),
    CELLS[1].directory: CellState(
        "running", step=4, total_steps=9, loss=3.0, tokens_per_second=1234.0, eta=70.0
    ),
    CELLS[2].directory: CellState(
        "failed", reason="\x1b[31mbad\x1b[0m [red]news[/red]\n", attempt=2
    ),
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_lines_are_plain():
    stream = io.StringIO()
    display = make_display(CELLS, 0.0, stream)
    assert isinstance(display, PlainDisplay)
    display.note("a: failed: \x1b[2Jred\nnews")
    display.show(STATES, 75.0)
    display.close()
    assert stream.getvalue().splitlines() == [
        "a: failed: red news",
        "1/30 done, 1 failed, 1 running, 27 pending, ETA 1:15",
        "  p=0.1: step 4/9, loss 3.0000, 1,234 tok/s, ETA 1:10",
    ]


def test_on_a_terminal_there_is_a_table_that_fits(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "12")
    stream = Terminal()
    display = make_display(CELLS, 10.0, stream)
    assert isinstance(display, LiveDisplay)
    display.note("[b]p=0.2[/b]: failed")
    display.show(STATES, 75.0)
    display.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "[b]p=0.2[/b]: failed" in shown and "bad [red]news[/red]" in shown
    assert "1,234" in shown and "1/30 done" in shown and "1:10" in shown
    states = {one.directory: STATES[CELLS[2].directory] for one in CELLS}
    display = LiveDisplay(CELLS, stream := Terminal())
    display.show(states, None)
    assert "rows more" in stream.getvalue() and stream.getvalue().count("failed") < 12
    display.close()
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_display(CELLS, 10.0, Terminal()), PlainDisplay)


def test_a_root_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "root"):
        with pytest.raises(ConfigError, match="a file is in the way"):
            claimable(Places(path))
    root = Root(tmp_path / "new" / "root", cell("a"))
    claimable(root.places)
    assert root.places.root.is_dir()


if __name__ == "__main__":
    for kept, launcher in KEPT.items():
        (HERE / kept).write_text(launcher.render(SPECS))
