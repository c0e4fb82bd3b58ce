"""Grid files become cells: complete configs, names that are safe, command lines that agree."""

from __future__ import annotations

import json
import os
import sys

import pytest
from absl import flags
from grid_files import LM, REPOSITORY, sample_grid, write_grid
from ml_collections.config_flags import config_flags

from moejax.config import ConfigError, build, to_plain
from moejax.grid.cells import SAFE_NAME, cell_name, safe_name
from moejax.grid.load import load_grid
from moejax.grid.selection import select
from moejax.train.experiment import Experiment
from moejax.train.rundir import identity_hash


def config_of(argv, monkeypatch):
    """The config that a training process makes of a cell's command line."""
    line = ["program", *argv]
    monkeypatch.setattr(sys, "argv", line)  # ml_collections looks for overrides there
    values = flags.FlagValues()
    flags.DEFINE_multi_string("import", [], "", flag_values=values)
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    values(line)
    return to_plain(build(Experiment, holder.value))


def assert_lines_agree(cells, monkeypatch):
    for cell in cells:
        assert config_of(cell.argv, monkeypatch) == cell.config, cell.argv


def test_cells_seeds_and_overrides(tmp_path):
    grid = sample_grid(
        tmp_path,
        "base=LM + ':size=nano,moe={moe},quick', treatments=product(axis('{moe}', ['top_k', "
        "'top_p']), axis('optimizer.lr', [1e-3, 3e-3])), seeds=(0, 7), overrides={'train.steps': "
        "'10 steps'}",
    )
    assert grid.name == "sample" and len(grid.cells) == 8
    cell = grid.cells[1]
    assert cell.name == "moe=top_k,lr=0.003,seed=0"
    assert cell.axes == {"moe": "top_k", "lr": "0.003"} and cell.seed == 0
    assert cell.overrides == {"train.steps": "10 steps", "optimizer.lr": 3e-3, "seed": 0}
    assert cell.config["optimizer"]["lr"] == 3e-3 and cell.config["train"]["steps"] == "10 steps"
    assert cell.directory == f"{cell.name}-{cell.hash}"
    assert cell.hash == identity_hash(cell.config)[:10]
    assert cell.argv == (
        f"--config={LM}:size=nano,moe=top_k,quick",
        "--config.train.steps=10 steps",
        "--config.optimizer.lr=0.003",
        "--config.seed=0",
    )
    # Seeds are the outer loop: an early stop still compares treatments.
    assert [one.seed for one in grid.cells] == [0] * 4 + [7] * 4
    assert len({one.directory for one in grid.cells}) == 8


VALUES = (
    "base=LM + ':size=nano,moe=top_p', seeds=(), treatments=chain("
    "axis('name', ['a b', \"it's\", '10', 'None', '$(x)', '-1']),"
    "axis('train.steps', {'i': 7, 's': '7', 't': '1e6 tokens', 'u': '9 steps'}),"
    "axis('evaluation.every', {'p': '5%', 'i': 3, 's': '3'}),"
    "axis('model.scan', [False]),"
    "axis('model.moe.router', [{'name': 'top_k', 'k': 3}, {'name': 'sigmoid_bias'}]),"
    "axis('model.moe.widths', {'explicit': WidthPlan('explicit', explicit=(32, 64) * 4, unit=32)},"
    " name='plan'),"
    "axis('model.moe.router.k_max', [0, 3]),"
    "axis('model.attention', {'gqa': {'name': 'gqa', 'heads': 4, 'kv_heads': 2}}),"
    "axis('data.domains', {'two': ('drama', 'code'), 'one': ['drama']}),"
    "axis('optimizer.lr', [1, 1e-05]),"
    "variants('both', {'router_and_k': {'model.moe.router': {'name': 'top_k'},"
    " 'model.moe.router.k': 4}}),"
    ")"
)


def test_command_lines_give_the_same_config_for_every_kind_of_value(tmp_path, monkeypatch):
    grid = sample_grid(tmp_path, VALUES)
    assert len(grid.cells) == 25
    assert_lines_agree(grid.cells, monkeypatch)
    routers = [cell.config["model"]["moe"] for cell in grid.cells if "router" in cell.axes]
    assert [one["router"]["name"] for one in routers] == ["top_k", "sigmoid_bias"]
    (both,) = (cell for cell in grid.cells if "both" in cell.axes)
    assert both.config["model"]["moe"]["router"]["k"] == 4
    assert len([word for word in both.argv if "router" in word]) == 1


def test_a_section_that_the_base_lacks_can_be_set(tmp_path, monkeypatch):
    grid = sample_grid(
        tmp_path,
        "base=LM + ':size=nano,moe=dense', treatments=axis('model.moe', {'small': {'experts': 4, "
        "'router': {'name': 'top_p', 'p': 0.3}}})",
    )
    assert grid.cells[0].config["model"]["moe"]["router"]["p"] == 0.3
    assert_lines_agree(grid.cells, monkeypatch)


def test_a_component_of_ones_own_reaches_the_cells(tmp_path, monkeypatch):
    (tmp_path / "my_router_of_grids.py").write_text(
        "import dataclasses\nimport jax\nfrom moejax.config import knob\n"
        "from moejax.routing import ROUTERS, LinearRouter, Selection\n\n"
        "@ROUTERS.register('mine_of_grids')\n@dataclasses.dataclass(frozen=True)\n"
        "class Mine(LinearRouter):\n    k: int = knob(2, low=1)\n"
        "    def slots(self, num_experts):\n        return self.k\n"
        "    def select(self, scores_TE, state):\n"
        "        weight_TK, expert_TK = jax.lax.top_k(scores_TE, self.k)\n"
        "        return Selection(expert_TK, weight_TK)\n"
    )
    path = str(tmp_path / "my_router_of_grids.py")
    from moejax.routing import ROUTERS

    monkeypatch.setattr(ROUTERS, "_classes", dict(ROUTERS._classes))
    grid = sample_grid(
        tmp_path,
        f"base=LM + ':size=nano,moe=top_k', imports=[{path!r}], treatments=axis("
        "'model.moe.router', [{'name': 'mine_of_grids'}, {'name': 'top_k'}])",
    )
    assert grid.cells[0].argv[0] == f"--import={path}"
    assert grid.cells[0].config["model"]["moe"]["router"]["name"] == "mine_of_grids"
    assert_lines_agree(grid.cells, monkeypatch)


@pytest.mark.parametrize(
    "sweep, message",
    [
        ("base=LM + ':moe=top_p', treatments=axis('model.moe.router.q', [1])",
         "q=1: config.model.moe.router.q: unknown key of 'top_p'; valid keys: "),
        ("base=LM + ':moe=top_p', treatments=axis('optimiser.lr', [1])",
         "lr=1: config.optimiser: unknown key; did you mean 'optimizer'?"),
        ("base=LM + ':moe=dense', treatments=axis('model.moe.router.p', [0.4])",
         "p=0.4: config.model.moe.router: cannot be set, because config.model.moe is None here"),
        ("base=LM + ':moe=top_p', treatments=axis('model.moe.router.p', [1.5])",
         "p=1.5: config.model.moe.router.p=1.5: must be in (0, 1]; nearest valid value: 1.0"),
        ("base=LM + ':moe=top_p', treatments=axis('model.moe.router.name', ['top_k'])",
         "name=top_k: config.model.moe.router.name: is 'top_p' here, and another one has other"),
        ("base=LM + ':moe={moe}', treatments=axis('{mo}', ['top_p'])",
         "mo=top_p: {mo} is unused, base="),
        ("base=LM + ':moe={moe}', treatments=axis('optimizer.lr', [1])",
         "lr=1: nothing fills {moe} of "),
        ("base=LM + ':moe={moe}', treatments=axis('{moe}', ['top_q'])",
         "moe=top_q: config argument moe='top_q': must be one of "),
        ("base=LM, treatments=axis('optimizer.lr', [1, 2]), overrides={'optimizer.lr': 3}",
         "lr=1: the key 'optimizer.lr' is also set for every cell"),
        ("base=LM + ':moe=top_p', treatments=product(axis('model.moe.router', {'a': {'name': "
         "'top_p', 'p': 0.5}}), axis('model.moe.router.p', [0.1]))",
         "router=a,p=0.1: the key 'model.moe.router.p' is also set inside of 'model.moe.router'"),
        ("base=LM + ':moe=top_p', overrides={'model.moe.router.p': 0.1}, treatments=axis("
         "'model.moe.router', {'a': {'name': 'top_p', 'p': 0.5}})",
         "router=a: the key 'model.moe.router.p' is also set inside of 'model.moe.router'"),
        ("base=LM, treatments=axis('seed', [1, 2])",
         "seed=1: sets 'seed' among the treatments; nearest valid: seeds="),
        ("base=LM + ':moe=top_k', treatments=axis('model.moe', {'off': None})",
         "moe=off: config.model.moe=None: the command line cannot take a whole section away"),
        ("base=LM, seeds=(1, 1)", "grid: the seed 1 is there twice"),
        ("base=LM, seeds=(1.5,)", "grid: the seed 1.5 is not a whole number"),
        ("base=''", "grid: base is empty"),
        ("base=LM, treatments=[1]", "grid: treatments=[1] are no axes"),
        ("base='nope.py'", "the base: --config=nope.py: no such config file"),
        ("base=LM, treatments=axis('optimizer.lr', {'a': 1, 'b': 1.0})",
         "duplicate cells: lr=a,seed=0 and lr=b,seed=0 have the same config"),
        ("base=LM, treatments=axis('log.console_seconds', [1, 2])",
         "duplicate cells: console_seconds=1,seed=0 and console_seconds=2,seed=0 have the same"),
        ("base=LM, treatments=chain(axis('optimizer.lr', [1]), axis('optimizer.b1', {'1': 0.5}, "
         "name='lr'))", "duplicate cells: lr=1,seed=0 are both called so"),
        ("base=LM, overrides={'{moe}': 3}", "grid: overrides cannot fill holes"),
    ],
)  # fmt: skip
def test_mistakes_name_the_cell_and_the_nearest_valid(tmp_path, sweep, message):
    with pytest.raises(ConfigError) as caught:
        sample_grid(tmp_path, sweep)
    said = str(caught.value)
    assert message in said and "\n" not in said


@pytest.mark.parametrize(
    "text, message",
    [
        ("def get_grid():\n    return 3\n", "get_grid returned int; nearest valid: moejax.grid.S"),
        ("x = 1\n", "has no get_grid (and no get_config with get_hyper)"),
        ("def get_grid():\n    return 1 / 0\n", "broken.py:2: get_grid: ZeroDivisionError"),
        ("import nothing_like_this\n", "broken.py:1: the file: ModuleNotFoundError"),
        ("def get_grid(:\n", "the file: SyntaxError"),
        ("from moejax.grid import axis\naxis('a', [])\n", "broken.py: axis 'a': is empty"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, text, message):
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_grid(str(tmp_path / "broken.py"))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_grid_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(ConfigError, match="--grid=smokes: no such grid; did you mean 'smoke'"):
        load_grid("smokes")
    write_grid(tmp_path, "base=LM")
    with pytest.raises(ConfigError, match=r"no such file; did you mean 'sample\.py'"):
        load_grid(str(tmp_path / "samples.py"))
    with pytest.raises(ConfigError, match="get_grid takes no argument, got 'x=1'"):
        load_grid(f"{tmp_path}/sample.py:x=1")


def test_a_grid_takes_an_argument(tmp_path):
    path = tmp_path / "sized.py"
    path.write_text(
        "from moejax.grid import *\n"
        f"def get_grid(arg=None):\n    return Sweep({str(LM)!r} + ':' + arg)\n"
    )
    assert load_grid(f"{path}:moe=top_p").cells[0].config["name"] == "nano-top_p"


# ---- get_hyper


HYPER = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("lm_of_hyper", {str(LM)!r})
lm = importlib.util.module_from_spec(spec)
import sys
sys.modules["lm_of_hyper"] = lm
spec.loader.exec_module(lm)
get_config = lm.get_config

def get_hyper(hyper):
    return hyper.product([
        hyper.chainit([
            hyper.zipit([
                hyper.sweep('config.optimizer.lr', [1e-3, 2e-3]),
                hyper.sweep('config.optimizer.b2', hyper.discrete([0.9, 0.95])),
                hyper.fixed('config.optimizer.eps', 1e-7, length=1),
            ]),
            hyper.sweep('config.optimizer.weight_decay', [0.2]),
        ]),
        hyper.sweep('config.model.tied_embeddings', hyper.boolean()),
        hyper.sweep('config.seed', range(2)),
    ])
"""


def test_get_hyper_of_a_config_file_runs(tmp_path, monkeypatch):
    path = tmp_path / "vit.py"
    path.write_text(HYPER)
    grid = load_grid(f"{path}:moe=top_p,quick")
    assert len(grid.cells) == 3 * 2 * 2
    cell = grid.cells[3]
    assert cell.axes == {
        "optimizer.lr": "0.001",
        "optimizer.b2": "0.9",
        "optimizer.eps": "1e-07",
        "model.tied_embeddings": "true",
    }
    assert cell.seed == 1 and cell.name.endswith(",seed=1") and "seed" not in cell.axes
    assert cell.config["optimizer"]["b2"] == 0.9 and cell.config["model"]["tied_embeddings"] is True
    assert_lines_agree(grid.cells, monkeypatch)


def test_most_public_configs_sweep_nothing(tmp_path):
    path = tmp_path / "hyper_file.py"
    path.write_text(HYPER.partition("def get_hyper")[0])
    with path.open("a") as file:
        file.write("def get_hyper(hyper, model='s16'):\n    return hyper.product([])\n")
    (cell,) = load_grid(f"{path}:quick").cells
    assert (cell.name, cell.axes, cell.argv) == ("base", {}, (f"--config={path}:quick",))


@pytest.mark.parametrize(
    "call, message",
    [
        ("hyper.sweeep('config.seed', [1])", "hyper.sweeep: is not supported; did you mean 'swee"),
        ("hyper.loguniform('lr', hyper.interval(1, 2))", "hyper.loguniform: is not supported; kn"),
        ("hyper.fixed('config.seed', 1, length=3)", "length=3; nearest valid value: 1"),
        ("[1]", "get_hyper returned list; nearest valid: hyper.product([...])"),
    ],
)
def test_what_hyper_cannot_do_is_said(tmp_path, call, message):
    path = tmp_path / "hyper_file.py"
    path.write_text(f"def get_config(arg=None): pass\ndef get_hyper(hyper): return {call}\n")
    with pytest.raises(ConfigError) as caught:
        load_grid(str(path))
    assert message in str(caught.value)


# ---- names


HOSTILE = (
    "../../etc/passwd", "/etc/passwd", "~root", "a/b", "$(touch x)", "`x`", "a\nb", "a\0b", "-rf",
    ".", "..", "", " ", "x" * 5000, "ünïcödé", "日本語" * 100, "a;b", "a|b", "*", "\x1b[31m",
    "<img src=x onerror=alert(1)>", "=cmd|x", "\u202egnp", "\ud800",
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_names_stay_one_component_inside_the_root(tmp_path, text):
    for name in (safe_name(text), cell_name({text: text}, 0), cell_name({"a": text}, None)):
        directory = f"{name}-{'0' * 10}"
        assert SAFE_NAME.fullmatch(name), ascii(name)
        assert len(directory.encode()) <= 200
        assert os.path.basename(directory) == directory
        assert (tmp_path / directory).resolve().parent == tmp_path.resolve()
        (tmp_path / directory).mkdir(exist_ok=True)


def test_names_that_look_alike_stay_apart():
    made = {cell_name({"a": text}, 0) for text in HOSTILE}
    assert len(made) == len(HOSTILE)


def test_hostile_values_make_cells(tmp_path, monkeypatch):
    values = [text for text in HOSTILE if text and "\0" not in text and "\ud800" not in text]
    grid = sample_grid(tmp_path, f"base=LM, treatments=axis('name', {values!r})")
    assert len({cell.directory for cell in grid.cells}) == len(values)
    assert_lines_agree(grid.cells[:3], monkeypatch)
    json.dumps([cell.axes for cell in grid.cells])


# ---- selection


def test_filters_select_cells(tmp_path):
    grid = sample_grid(
        tmp_path,
        "base=LM + ':moe={moe}', treatments=product(axis('{moe}', ['top_k', 'top_p', 'dense']), "
        "axis('optimizer.lr', [1, 2])), seeds=(0, 1)",
    )
    assert select(grid.cells, ()) == grid.cells
    chosen = select(grid.cells, ("moe=top_k|dense", "lr=2", "seed=1"))
    assert [cell.name for cell in chosen] == ["moe=top_k,lr=2,seed=1", "moe=dense,lr=2,seed=1"]


def test_an_empty_label_means_the_cells_without_the_axis(tmp_path):
    either = "chain(axis('optimizer.lr', [1]), axis('optimizer.b2', [0.5]))"
    grid = sample_grid(tmp_path, f"base=LM, treatments={either}")
    assert [cell.axes for cell in select(grid.cells, ("lr=",))] == [{"b2": "0.5"}]


@pytest.mark.parametrize(
    "filters, message",
    [
        (("moe",), "--filter=moe: expected AXIS=LABEL[|LABEL...]"),
        (("mo=top_k",), "--filter=mo=top_k: unknown axis 'mo'; did you mean 'moe'?"),
        (("zzz=1",), "--filter=zzz=1: unknown axis 'zzz'; axes: moe, seed"),
        (("moe=top_q",), "--filter=moe=top_q: axis 'moe' has no 'top_q'; did you mean 'top_p'?"),
        (("moe=top_k", "moe=top_p"), "--filter=moe=top_k --filter=moe=top_p: no cell is left of 2"),
    ],
)
def test_wrong_filters(tmp_path, filters, message):
    grid = sample_grid(
        tmp_path, "base=LM + ':moe={moe}', treatments=axis('{moe}', ['top_k', 'top_p'])"
    )
    with pytest.raises(ConfigError) as caught:
        select(grid.cells, filters)
    assert str(caught.value) == message
