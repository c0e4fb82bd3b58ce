import pytest

from moejax.config import ConfigError, to_steps


@pytest.mark.parametrize(
    "value, steps",
    [
        (0, 0),
        (500, 500),
        ("500", 500),
        ("500 steps", 500),
        ("1 step", 1),
        ("1e3 steps", 1000),
        ("1_000", 1000),
        ("1000 tokens", 10),
        ("1001tokens", 11),
        ("1 Tokens", 1),
        ("0 tokens", 0),
        ("10%", 20),
        ("2.5 percent", 5),
        ("0%", 0),
        ("0.001%", 1),
        ("100%", 200),
    ],
)
def test_steps_tokens_and_percent(value, steps):
    assert to_steps(value, total_steps=200, tokens_per_step=100) == steps


def test_halves_round_up_whatever_the_parity():
    assert to_steps("50%", total_steps=5, tokens_per_step=1) == 3
    assert to_steps("50%", total_steps=3, tokens_per_step=1) == 2


@pytest.mark.parametrize(
    "value, message",
    [
        ("10 epochs", "warmup='10 epochs': unknown unit 'epochs'; nearest valid: 500, '500 steps'"),
        ("10 stepps", "warmup='10 stepps': unknown unit 'stepps'; did you mean 'steps'?"),
        (-1, "warmup=-1: must not be negative; nearest valid value: 0"),
        ("-5%", "warmup='-5%': must not be negative; nearest valid value: 0"),
        ("1.6 steps", "warmup='1.6 steps': must be whole steps; nearest valid value: 2"),
        ("0.2 steps", "warmup='0.2 steps': must be whole steps; nearest valid value: 1"),
        ("150%", "warmup='150%': must be at most 100%; nearest valid value: '100%'"),
        (2.0, "warmup=2.0: expected steps, tokens or percent, got float; nearest valid value: 2"),
        (True, "warmup=True: expected steps, tokens or percent, got bool"),
        (None, "warmup=None: expected steps, tokens or percent, got NoneType"),
        ("", "warmup='': is not a duration; nearest valid: 500, '500 steps'"),
        ("steps", "warmup='steps': is not a duration; nearest valid: 500"),
        ("1e999", "warmup='1e999': is too large a number"),
    ],
)
def test_a_bad_duration_is_answered_in_one_line(value, message):
    with pytest.raises(ConfigError) as caught:
        to_steps(value, total_steps=200, tokens_per_step=100, path="warmup")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_percentage_needs_a_length():
    with pytest.raises(ConfigError, match="a percentage needs the run's length"):
        to_steps("10%", total_steps=None, tokens_per_step=100)
    assert to_steps("300 tokens", total_steps=None, tokens_per_step=100) == 3
    with pytest.raises(ConfigError, match="tokens_per_step=0 must be >= 1"):
        to_steps(3, total_steps=None, tokens_per_step=0)
