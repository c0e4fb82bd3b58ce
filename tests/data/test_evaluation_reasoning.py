"""Graded tasks: levels, seeds and repeats, with a stand-in for the generators.

The genuine package is read in `test_evaluation_installed.py`.
"""

import collections
import sys

import pytest
from evaluation_samples import Site, documents, refusal

from moejax.data.evaluation import open_evaluation
from moejax.data.evaluation.reasoning import INSTALL, LEVELS, MAX_SIZE, TASKS

BASE = """
class RangeAttributeMode:
    UPPER_BOUND = "upper"

class DefaultCurriculumContext:
    def __init__(self, mode):
        self.mode = mode
"""
FACTORY = """
import types

class Curriculum:
    def set_global_level(self, level):
        self.level = level

    def generate_configuration(self, settings, context):
        assert context.mode == "upper"
        return types.SimpleNamespace(level=self.level, **settings)

def create_curriculum(name):
    return Curriculum()

def create_dataset(name, level, seed, size):
    for i in range(size):
        number = (seed + i) if name != "gcd" else (seed + i) % 3
        yield {"question": f" {name} {level}: {number}?\\r\\n", "answer": number * 10**level}
"""


@pytest.fixture
def gym(tmp_path, monkeypatch):
    site = Site(tmp_path, monkeypatch)
    for name in [name for name in sys.modules if name.partition(".")[0] == "reasoning_gym"]:
        monkeypatch.delitem(sys.modules, name)
    site.install(
        "reasoning-gym",
        {
            "reasoning_gym/__init__.py": "",
            "reasoning_gym/factory.py": FACTORY,
            "reasoning_gym/coaching/__init__.py": "",
            "reasoning_gym/coaching/base_curriculum.py": BASE,
        },
        version="0.1.25",
    )
    yield site
    for name in [name for name in sys.modules if name.partition(".")[0] == "reasoning_gym"]:
        del sys.modules[name]


def test_each_task_at_each_level(gym):
    found = documents("reasoning?size=3&tasks=lcm,products")
    count = collections.Counter((d.domain, d.difficulty) for d in found)
    assert count == {(task, float(i)): 3 for task in ("lcm", "products") for i in range(LEVELS)}
    first = next(d for d in found if (d.domain, d.difficulty) == ("lcm", 1.0))
    level_and_number = first.text.split(":")[0]
    assert level_and_number == "lcm 1"
    number = int(first.text.split()[2].rstrip("?"))
    assert first.text == f"lcm 1: {number}?\n{number * 10}\n"
    (row, _) = open_evaluation("reasoning?size=3&tasks=lcm,products").sources()
    assert (row["package"], row["version"], row["licence"]) == (
        *("reasoning-gym", "0.1.25", "Apache-2.0"),
    )


def test_no_item_is_shared_by_levels_or_seeds(gym):
    def numbers(seed):
        return [
            int(d.text.split()[2].rstrip("?"))
            for d in documents(f"reasoning?size=50&tasks=lcm&seed={seed}")
        ]

    one, two = numbers(0), numbers(1)
    assert len(set(one) | set(two)) == 400
    assert max(one) < LEVELS * MAX_SIZE <= min(two)


def test_items_that_come_out_alike_are_left_out(gym):
    found = documents("reasoning?size=50&tasks=gcd")
    assert len(found) == 3 * LEVELS == len({d.text for d in found})


def test_all_tasks_by_default(gym):
    assert {d.domain for d in documents("reasoning?size=1")} == set(TASKS)


def test_a_package_that_lacks_another(gym):
    (gym.folder / "reasoning_gym/factory.py").write_text("import no_such_package_zz\n")
    assert refusal("reasoning") == (
        f"reasoning-gym lacks the package 'no_such_package_zz'; install it: {INSTALL}"
    )
