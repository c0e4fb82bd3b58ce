"""`python -m experiments.train` answers mistakes like a good tool: one line, exit code 2."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import runs
from moejax.data import DataConfig, Dataset
from moejax.train.lock import RunLock

REPOSITORY = Path(__file__).resolve().parents[2]
LM = "--config=configs/lm.py:size=nano,quick,moe=top_p"

CASES: dict[str, tuple[list[str], str]] = {
    "wrong key": (
        [LM, "--config.model.moe.router.pp=0.3", "--workdir=WORK"],
        r"config\.model\.moe\.router\.pp: unknown key; did you mean 'p'\?",
    ),
    "wrong group": ([LM, "--config.modle.d_model=8"], r"config\.modle: .*did you mean 'model'\?"),
    "out of range": (
        [LM, "--config.model.moe.router.p=1.3", "--workdir=WORK"],
        r"config\.model\.moe\.router\.p=1\.3: must be in \(0, 1\]; nearest valid value: 1\.0",
    ),
    "wrong type": (
        [LM, "--config.train.batch_size=many"],
        r"config\.train\.batch_size=many: .*int",
    ),
    "wrong choice": (
        [LM, "--config.schedule.kind=linear", "--workdir=WORK"],
        r"config\.schedule\.kind='linear': must be one of wsd, cosine, constant",
    ),
    "wrong argument": (
        ["--config=configs/lm.py:sise=nano", "--workdir=WORK"],
        r"config argument 'sise': unknown argument; did you mean 'size'\?",
    ),
    "wrong argument value": (
        ["--config=configs/lm.py:moe=topp", "--workdir=WORK"],
        r"config argument moe='topp': must be one of .*; did you mean 'top_[pk]'\?",
    ),
    "missing config file": (
        ["--config=configs/ml.py", "--workdir=WORK"],
        r"--config=configs/ml\.py: no such config file; did you mean 'lm\.py'\?",
    ),
    "missing text": (
        [LM, "--config.data.corpus=files:/nowhere/*.txt", "--workdir=WORK"],
        r"files:/nowhere/\*\.txt: matches no file",
    ),
    "cudnn without a GPU": (
        [LM, "--config.model.attention.backend=cudnn", "--workdir=WORK"],
        r"config\.model\.attention\.backend='cudnn': needs a GPU .* on cpu here; nearest .* 'xla'",
    ),
    "no config": (["--workdir=WORK/new"], r"--config: is required"),
    "no workdir": ([LM], r"--workdir: is required"),
    "unknown flag": ([LM, "--wrokdir=WORK"], r"wrokdir.*Did you mean: workdir"),
    "stray argument": ([LM, "--workdir=WORK", "quick"], r"quick: unexpected argument"),
    "bad profile": ([LM, "--workdir=WORK", "--profile=3"], r"--profile=3: expected FIRST:LAST"),
    "missing import": (["--import=my_ruter.py", LM], r"--import=my_ruter\.py: no such file"),
    "broken import": (["--import=BROKEN", LM], r"--import=.*broken\.py: ZeroDivisionError"),
    "warm-up too long": (
        [LM, "--config.train.steps=10", "--config.schedule.warmup=11", "--workdir=WORK"],
        r"config\.schedule\.warmup=11: 11 steps of warm-up are longer than the run of 10",
    ),
    "k above E": (
        ["--config=configs/lm.py:quick,moe=top_k", "--config.model.moe.router.k=9"],
        r"asks for 9 experts per token but there are 8; nearest valid value 8",
    ),
    "vocabulary": (
        [LM, "--config.model.vocab_size=99", "--workdir=WORK"],
        r"config\.model\.vocab_size=99: is smaller than the 320 tokens",
    ),
    "workdir is a file": (
        [LM, "--workdir=FILE"],
        r"file: is a file; --workdir needs a directory",
    ),
    "cache is a file": (
        [LM, "--config.data.cache_dir=FILE", "--workdir=WORK"],
        r"file/xla: cannot keep compiled programs there \(Not a directory\); choose another cache",
    ),
    "workdir is occupied": (
        [LM, "--workdir=OCCUPIED"],
        rf"occupied: the run directory is in use by pid {os.getpid()} on host .* since ",
    ),
}

GOOD: dict[str, list[str]] = {
    "help": ["--help"],
    "show": [LM, "--config.model.moe.router.p=0.35", "--config.train.steps=10%"],
    "durations": [
        *(LM, "--config.train.steps=4096 tokens", "--config.schedule.warmup=10%"),
        *("--config.evaluation.every=3", "--show"),
    ],
    "own router": ["--import=ROUTER", "--config=MYCONFIG:quick", "--show"],
}

ROUTER = '''
import dataclasses
from moejax.config import knob
from moejax.routing import ROUTERS
from moejax.routing.routers import TopK

@ROUTERS.register("mine")
@dataclasses.dataclass(frozen=True)
class Mine(TopK):
    """A router in a user's file."""
    temperature: float = knob(0.7, doc="mine alone")
'''
MYCONFIG = """
import dataclasses
from configs import lm
from moejax.config import build, to_config_dict
from moejax.routing import ROUTERS
from moejax.train import Experiment

def get_config(arg=None):
    base = build(Experiment, lm.get_config("size=nano,quick,moe=top_k"))
    moe = dataclasses.replace(base.model.moe, router=ROUTERS.get("mine")(k=2))
    return to_config_dict(
        dataclasses.replace(base, model=dataclasses.replace(base.model, moe=moe))
    )
"""

Answer = tuple[int, str, str]


def training(data: DataConfig, directory: Path) -> list[str]:
    """A short run of a real model."""
    return [
        "--config=configs/lm.py:size=nano,quick,moe=dense",
        f"--config.data.corpus={data.corpus}",
        f"--config.data.cache_dir={data.cache_dir}",
        "--config.data.limit_bytes=0",
        f"--config.data.validation_fraction={data.validation_fraction}",
        f"--config.data.seq_len={data.seq_len}",
        "--config.train.steps=12",
        "--config.train.batch_size=4",
        "--config.evaluation.batch_size=4",
        "--config.log.tensorboard=false",
        f"--workdir={directory / 'run'}",
    ]


@pytest.fixture(scope="module")
def answers(
    text: tuple[DataConfig, Dataset], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Answer]:
    directory = tmp_path_factory.mktemp("command_line")
    files = {
        "WORK": directory / "work",
        "FILE": directory / "file",
        "BROKEN": directory / "broken.py",
        "OCCUPIED": directory / "occupied",
        "ROUTER": directory / "my_router.py",
        "MYCONFIG": directory / "my_config.py",
    }
    files["FILE"].write_text("x")
    files["BROKEN"].write_text("1 / 0\n")
    files["OCCUPIED"].mkdir()
    files["ROUTER"].write_text(ROUTER)
    files["MYCONFIG"].write_text(MYCONFIG)

    def fill(arguments: list[str]) -> list[str]:
        for name, path in files.items():
            arguments = [re.sub(rf"\b{name}\b", str(path), argument) for argument in arguments]
        return arguments

    lines = {name: fill(case[0]) for name, case in CASES.items()}
    lines |= {name: fill(arguments) for name, arguments in GOOD.items()}
    lines |= {name: training(text[0], directory) for name in ("run", "run again")}
    with RunLock(files["OCCUPIED"]):
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("many_command_lines.py"))],
            input=json.dumps(list(lines.values())),
            capture_output=True,
            text=True,
            check=False,
            cwd=REPOSITORY,
            env=runs.environment(PYTHONPATH=REPOSITORY, MOEJAX_CACHE=directory / "c"),
        )
    assert done.returncode == 0, done.stderr
    found = [tuple(answer) for answer in json.loads(done.stdout)]
    return dict(zip(lines, found, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_one_clear_line_and_exit_code_2(answers: dict[str, Answer], name: str) -> None:
    code, out, err = answers[name]
    assert code == 2, err
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert re.match(rf"error: .*{CASES[name][1]}", lines[0]), lines[0]


def test_help_is_useful(answers: dict[str, Answer]) -> None:
    code, out, _ = answers["help"]
    assert "--coordinator: " in out and "--heartbeat_seconds: " in out
    assert code == 0
    for word in ("usage:", "examples:", "--config", "--workdir", "--profile", "Exit codes"):
        assert word in out


def test_percent_of_nothing_is_a_mistake(answers: dict[str, Answer]) -> None:
    code, _, err = answers["show"]
    assert code == 2
    assert "config.train.steps='10%': a percentage needs the run's length" in err


def test_show_lists_the_knobs(answers: dict[str, Answer]) -> None:
    code, out, _ = answers["durations"]
    assert code == 0
    assert "config.train.steps = '4096 tokens'" in out
    assert "config.schedule.warmup = '10%'" in out
    assert "config.model.moe.router.name = 'top_p'" in out


def test_a_router_from_the_users_file(answers: dict[str, Answer]) -> None:
    code, out, err = answers["own router"]
    assert code == 0, err
    assert "config.model.moe.router.name = 'mine'" in out
    assert re.search(r"config\.model\.moe\.router\.temperature = 0\.7 +mine alone", out)


def test_a_run_from_the_command_line(answers: dict[str, Answer]) -> None:
    """Trains, says where, and leaves the finished run alone the second time."""
    code, out, err = answers["run"]
    assert code == 0, err
    assert re.match(r"done: 12 steps, \d+ tokens, validation loss [\d.]+ nats/token", out)
    assert re.search(r"/run\b", out)
    assert "step 12/12" in err
    assert "\x1b" not in err
    code, out, err = answers["run again"]
    assert code == 0, err
    assert out.startswith("was done already")
