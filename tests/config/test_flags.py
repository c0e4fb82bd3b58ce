import sys

import pytest
from absl import flags
from config_samples import Experiment
from ml_collections.config_flags import config_flags

from moejax.config import build, to_config_dict, to_plain
from moejax.config.flags import explain_file, explain_key, explain_override


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """Returns a function that parses a command line as an absl program with --config would."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lm.py").write_text("from config_samples import get_config as get_config\n")

    def call(*args):
        argv = ["program", *args]
        monkeypatch.setattr(sys, "argv", argv)  # ml_collections looks for overrides there
        values = flags.FlagValues()
        holder = config_flags.DEFINE_config_file("config", flag_values=values)
        values(argv)
        return holder.value

    return call


def test_overrides_of_every_type_arrive(parse):
    cfg = parse(
        "--config=lm.py:size=tiny,quick",
        "--config.model.moe.router.p=1",
        "--config.model.moe.router.k_max=3",
        "--config.model.moe.widths=(1, 2)",
        "--config.model.moe.losses.balance=1",
        "--config.extra[0].k=5",
        "--config.steps=10%",
        "--config.label=hello",
        "--noconfig.quick",
    )
    found = to_plain(build(Experiment, cfg))
    assert found["name"] == "tiny" and found["quick"] is False
    moe = found["model"]["moe"]
    assert moe["router"]["p"] == 1.0 and moe["router"]["k_max"] == 3
    assert moe["widths"] == [1, 2] and moe["losses"] == {"balance": 1.0}
    assert found["extra"] == [{"name": "top_k", "k": 5}]
    assert found["steps"] == "10%" and found["label"] == "hello"


@pytest.mark.parametrize(
    "override, key, value",
    [
        ("--config.model.moe.router.k_max=None", ("model", "moe", "router", "k_max"), None),
        ("--config.label=None", ("label",), None),
        ("--config.steps=7", ("steps",), 7),
        ("--config.model.moe.widths=()", ("model", "moe", "widths"), []),
        ("--config.quick", ("quick",), True),
        ("--config.betas=0.8,0.9", ("betas",), [0.8, 0.9]),
    ],
)
def test_single_overrides(parse, override, key, value):
    found = to_plain(build(Experiment, parse("--config=lm.py", override)))
    for part in key:
        found = found[part]
    assert found == value


def test_ml_collections_checks_the_type_of_an_override(parse):
    with pytest.raises(flags.IllegalFlagValueError, match="could not convert string to float"):
        parse("--config=lm.py", "--config.learning_rate=fast")


def test_a_wrong_argument_is_one_line_through_ml_collections(parse):
    with pytest.raises(flags.IllegalFlagValueError) as caught:
        parse("--config=lm.py:sise=tiny")
    assert str(caught.value) == (
        "flag --config=lm.py:sise=tiny: config argument 'sise': unknown argument; "
        "did you mean 'size'?"
    )


def test_a_wrong_key_is_explained(parse):
    args = ["--config", "lm.py:quick", "--noconfig.quick", "--config.model.moe.router.pp=1"]
    with pytest.raises(AttributeError):
        parse(*args)
    assert explain_override("config", ["program", *args]) == (
        "config.model.moe.router.pp: unknown key; did you mean 'p'?"
    )
    assert explain_override("config", ["program", "--config=lm.py", "--noconfig.quick"]) == ""
    assert explain_override("config", ["program"]) == ""


def test_a_missing_config_file_is_explained(parse):
    def explain(value):
        return explain_file("config", ["program", f"--config={value}"])

    assert explain("lm.py:size=tiny") == ""
    assert explain_file("config", ["program"]) == ""
    assert explain("lmm.py:x") == "--config=lmm.py:x: no such config file; did you mean 'lm.py'?"
    assert explain("zzz") == "--config=zzz: no such config file; config files there: lm.py"
    assert explain("no/where.py") == "--config=no/where.py: no such config file"


@pytest.mark.parametrize(
    "key, message",
    [
        ("model.moe.router.p", ""),
        ("extra[0].k", ""),
        ("modle.moe", "config.modle: unknown key; did you mean 'model'?"),
        ("zzz", "config.zzz: unknown key; valid keys: betas, extra, label, learning_rate, "),
        ("quick.x", "config.quick.x: unknown key; config.quick is a value, not a group of keys"),
        ("extra[4].k", "config.extra[4]: no such element; config.extra has 1"),
        ("name[0]", "config.name[0]: config.name is not a tuple"),
        ("model.dense.experts", "config.model.dense.experts: cannot be set, because "),
    ],
)
def test_explain_key_names_the_first_part_that_is_wrong(key, message):
    found = explain_key(to_config_dict(Experiment()), key)
    assert found.startswith(message) and bool(found) == bool(message)
