import itertools
import random

import pytest

from moejax.config import ConfigError
from moejax.config.widths import STRATEGIES, WidthPlan, apportion

ARITHMETIC = (9, 11, 13, 15, 17, 19, 21, 23)
HYBRID = (1, 1, 1, 1, 2, 2, 4, 4)


def refusal(plan, experts):
    with pytest.raises(ConfigError) as caught:
        plan.widths(experts, "model.moe.widths")
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("unit", [1, 32, 96])
def test_B7_arithmetic_widths_of_the_small_model(unit):
    widths = WidthPlan("arithmetic", mean=12288 // 8, unit=unit).widths(8)
    assert widths == (864, 1056, 1248, 1440, 1632, 1824, 2016, 2208)
    assert sum(widths) == 12288


def test_B7_arithmetic_widths_of_the_large_model():
    widths = WidthPlan("arithmetic", mean=32768 // 8, unit=256).widths(8)
    assert widths == (2304, 2816, 3328, 3840, 4352, 4864, 5376, 5888)
    assert sum(widths) == 32768


@pytest.mark.parametrize("total, base", [(12288, 768), (32768, 2048)])
def test_B7_hybrid_widths(total, base):
    widths = WidthPlan("hybrid", mean=total // 8, unit=256).widths(8)
    assert widths == tuple(base * share for share in HYBRID)


@pytest.mark.parametrize("total", [12288, 32768])
@pytest.mark.parametrize("unit", [8, 64])
def test_B7_geometric_widths_are_multiples_of_the_unit_and_keep_the_sum(total, unit):
    widths = WidthPlan("geometric", mean=total // 8, unit=unit).widths(8)
    assert sum(widths) == total
    assert all(width >= unit and width % unit == 0 for width in widths)
    for power, width in enumerate(widths):
        assert abs(width - total * 2**power / 255) < unit
    assert list(widths) == sorted(widths)


def test_uniform_is_the_default_and_its_unit_is_the_expert():
    plan = WidthPlan(mean=24)
    assert plan.widths(5) == (24,) * 5
    assert plan.unit_width == 24


@pytest.mark.parametrize("experts", [2, 3, 4, 6, 16, 63])
def test_other_numbers_of_experts_keep_the_end_points_of_eight(experts):
    arithmetic = WidthPlan("arithmetic", mean=1024, unit=1).widths(experts)
    assert arithmetic[-1] / arithmetic[0] == pytest.approx(23 / 9, rel=0.01)
    steps = [after - before for before, after in itertools.pairwise(arithmetic)]
    assert max(steps) - min(steps) <= 2
    geometric = WidthPlan("geometric", mean=65536, unit=1).widths(experts)
    assert geometric[-1] / geometric[0] == pytest.approx(128, rel=0.02)
    assert set(STRATEGIES["hybrid"](experts)) <= {1.0, 2.0, 4.0}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_single_expert_gets_everything(strategy):
    assert WidthPlan(strategy, mean=96, unit=8).widths(1) == (96,)


@pytest.mark.parametrize("seed", range(60))
def test_every_plan_keeps_the_total_and_gives_each_expert_a_unit(seed):
    rng = random.Random(seed)
    strategy = rng.choice(sorted(STRATEGIES))
    experts, unit = rng.randint(1, 40), rng.choice([1, 2, 4, 8, 16, 48])
    mean = unit * rng.randint(2, 60)
    widths = WidthPlan(strategy, mean=mean, unit=unit).widths(experts)
    assert len(widths) == experts
    assert sum(widths) == mean * experts
    assert min(widths) >= unit
    assert all(width % unit == 0 for width in widths)
    # A later expert is never narrower, but for the unit that a tie gives to the earlier one.
    assert all(after >= before - unit for before, after in itertools.pairwise(widths))
    assert strategy != "uniform" or set(widths) == {mean}


@pytest.mark.parametrize("seed", range(60))
def test_largest_remainder_stays_within_one_unit_of_the_exact_share(seed):
    rng = random.Random(seed)
    relative = [rng.uniform(0.2, 5.0) for _ in range(rng.randint(1, 30))]
    total = rng.randint(len(relative), 40 * len(relative))
    shares = apportion(relative, total)
    assert sum(shares) == total
    assert min(shares) >= 1
    quotas = [total * r / sum(relative) for r in relative]
    if min(quotas) >= 1:  # else the guaranteed unit is paid for by the others
        assert all(abs(share - quota) < 1 for share, quota in zip(shares, quotas, strict=True))
        above = [q - int(q) for q, s in zip(quotas, shares, strict=True) if s > q]
        below = [q - int(q) for q, s in zip(quotas, shares, strict=True) if s <= q and q != int(q)]
        assert not above or not below or min(above) >= max(below) - 1e-6


@pytest.mark.parametrize(
    "relative, total, shares",
    [
        ([1.0, 1.0, 1.0], 4, [2, 1, 1]),
        ([1.0, 2.0, 4.0], 10, [1, 3, 6]),
        ([1.0, 100.0], 2, [1, 1]),
        ([1.0, 1.0, 98.0], 10, [1, 1, 8]),
        (list(map(float, ARITHMETIC)), 128, list(ARITHMETIC)),
    ],
)
def test_largest_remainder_by_hand(relative, total, shares):
    assert apportion(relative, total) == shares


def test_explicit_widths_are_taken_as_they_are():
    plan = WidthPlan("explicit", unit=4, explicit=(4, 12, 8, 0))
    assert plan.widths(4) == (4, 12, 8, 0)
    assert plan.unit_width == 4


def test_the_unit_of_explicit_widths_is_their_common_divisor_unless_given():
    plan = WidthPlan("explicit", explicit=(64, 96, 160))
    assert plan.widths(3) == (64, 96, 160)
    assert plan.unit_width == 32


def test_a_total_that_is_no_multiple_of_the_unit_is_refused():
    message = refusal(WidthPlan("hybrid", mean=100, unit=48), 4)
    assert message.startswith("model.moe.widths.mean: 4 experts x 100 hidden units")
    assert message.endswith("nearest valid value 96")
    assert WidthPlan("hybrid", mean=96, unit=48).widths(4) == (48, 48, 96, 192)


def test_a_unit_too_coarse_for_one_each_is_refused():
    message = refusal(WidthPlan("hybrid", mean=64, unit=128), 4)
    assert message.startswith("model.moe.widths.unit: 256 hidden units in units of 128")
    unit = int(message.rpartition(" ")[2])
    assert len(set(WidthPlan("hybrid", mean=64, unit=unit).widths(4))) > 1


def test_uniform_widths_are_equal_or_refused():
    message = refusal(WidthPlan(mean=12, unit=8), 2)  # 3 units for 2 experts
    assert message.startswith("model.moe.widths.mean:")
    near = int(message.rpartition(" ")[2])
    assert WidthPlan(mean=near, unit=8).widths(2) == (near, near)


@pytest.mark.parametrize("strategy", ["arithmetic", "geometric", "hybrid"])
def test_a_unit_too_coarse_to_tell_experts_apart_is_refused(strategy):
    # unit 0 is the mean width: every expert would get exactly one unit, a homogeneous layer.
    message = refusal(WidthPlan(strategy, mean=128), 8)
    assert message.startswith("model.moe.widths.unit: in units of 128 every expert of strategy")
    unit = int(message.rpartition(" ")[2])
    assert len(set(WidthPlan(strategy, mean=128, unit=unit).widths(8))) > 1
    message = refusal(WidthPlan(strategy, mean=128, unit=256), 8)
    assert message.endswith(f"nearest valid value {unit}")


def test_experts_too_small_to_differ_are_refused():
    assert "larger mean width" in refusal(WidthPlan("arithmetic", mean=1, unit=1), 8)


def test_an_explicit_list_of_the_wrong_length_is_refused():
    message = refusal(WidthPlan("explicit", unit=4, explicit=(4, 8)), 3)
    assert message.startswith("model.moe.widths.explicit: 2 widths for 3 experts")


@pytest.mark.parametrize("width, near", [(1, 4), (11, 12), (17, 16), (-4, 4)])
def test_an_explicit_width_off_the_unit_is_refused(width, near):
    message = refusal(WidthPlan("explicit", unit=4, explicit=(8, width)), 2)
    assert message.startswith(f"model.moe.widths.explicit[1]: width {width}")
    assert message.endswith(f"nearest valid value {near}")


def test_a_list_without_the_explicit_strategy_is_refused():
    message = refusal(WidthPlan("uniform", explicit=(8, 8)), 2)
    assert message.startswith("model.moe.widths.explicit:")
    assert "strategy='explicit'" in message


def test_an_unknown_strategy_is_refused_with_a_suggestion():
    message = refusal(WidthPlan("arithmetics"), 2)
    assert message.startswith("model.moe.widths.strategy:")
    assert "did you mean 'arithmetic'?" in message
