import pytest

from moejax.config import ConfigError, parse_argument

DEFAULTS = {"size": ("nano", "tiny", "mini"), "moe": "dense", "quick": False, "seed": 0, "lr": 0.1}


@pytest.mark.parametrize("arg", [None, "", "  "])
def test_nothing_means_the_defaults(arg):
    found = parse_argument(arg, **DEFAULTS)
    assert vars(found) == {"size": "nano", "moe": "dense", "quick": False, "seed": 0, "lr": 0.1}


def test_values_take_the_type_of_their_default():
    found = parse_argument(" size=tiny, moe = top_p ,quick,seed=3,lr=1", **DEFAULTS)
    assert vars(found) == {"size": "tiny", "moe": "top_p", "quick": True, "seed": 3, "lr": 1.0}
    assert type(found.lr) is float


@pytest.mark.parametrize("text, value", [("true", True), ("0", False), ("No", False), ("1", True)])
def test_bools_are_words(text, value):
    assert parse_argument(f"quick={text}", **DEFAULTS).quick is value


def test_choices_may_be_numbers():
    assert parse_argument("layers=4", layers=(2, 4)).layers == 4


@pytest.mark.parametrize(
    "arg, message",
    [
        ("sise=tiny", "config argument 'sise': unknown argument; did you mean 'size'?"),
        (
            "zzz=1",
            "config argument 'zzz': unknown argument; valid arguments: size, moe, quick, seed, lr",
        ),
        (
            "size=tini",
            "config argument size='tini': must be one of nano, tiny, mini; did you mean 'tiny'?",
        ),
        ("size=", "config argument size='': must be one of nano, tiny, mini"),
        ("size", "config argument 'size': needs a value; nearest valid: size=nano"),
        ("seed=1,seed=2", "config argument 'seed': is given twice"),
        ("seed=1.5", "config argument seed='1.5': expected int; nearest valid value: 2"),
        ("seed=x", "config argument seed='x': expected int; for example 0"),
        ("lr=fast", "config argument lr='fast': expected float; for example 0.1"),
        (
            "quick=maybe",
            "config argument quick='maybe': expected true or false; nearest valid: true or false",
        ),
        (
            "quick=ture",
            "config argument quick='ture': expected true or false; did you mean 'true'?",
        ),
        ("seed=1,,lr=2", "config argument 'seed=1,,lr=2': has an empty part; remove a comma"),
    ],
)
def test_a_mistake_is_answered_in_one_line(arg, message):
    with pytest.raises(ConfigError) as caught:
        parse_argument(arg, **DEFAULTS)
    assert str(caught.value) == message
