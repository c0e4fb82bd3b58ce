"""Every registered router and variant passes the battery, and the battery sees what it should."""

import functools

import pytest
from faulty_routers import FAULTY, ScoresAlone
from router_battery import CHECKS, check_router
from router_subject import Subject
from routers_under_test import ROUTERS, routers

from moejax.routing import ROUTERS as REGISTRY

subject = functools.cache(Subject)  # by router: one set of compiled programs for all its checks


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ROUTERS)
def test_battery(name, check):
    check(subject(ROUTERS[name]))


def test_registering_is_enough(monkeypatch):
    """A router from outside the package is in the battery as soon as it is registered; this one
    has scores and nothing else in common with those inside."""
    monkeypatch.setattr(REGISTRY, "_classes", dict(REGISTRY._classes))
    REGISTRY.register("outside")(ScoresAlone)
    check_router(routers()["outside"])


@pytest.mark.parametrize(
    "router, check, symptom",
    FAULTY,
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_battery_turns_red_for(router, check, symptom):
    function = next(known for known in CHECKS if known.__name__ == check)
    with pytest.raises((AssertionError, pytest.fail.Exception), match=symptom):
        function(subject(router))


def test_every_check_turns_red_for_some_router():
    assert {check for _, check, _ in FAULTY} == {check.__name__ for check in CHECKS}
