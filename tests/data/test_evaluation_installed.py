"""The sets with the packages they are made of; docs/data.md has their tables.

Needs the extras `eval` and `multilingual`; without them the tests fail and say so.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from evaluation_samples import documents

from moejax.config import ConfigError
from moejax.data.evaluation import open_evaluation
from moejax.data.evaluation.languages import VERSIONS
from moejax.data.evaluation.reasoning import TASKS

pytestmark = pytest.mark.all

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def sources(spec):
    try:
        return open_evaluation(spec).sources()
    except ConfigError as error:
        message = str(error)
    pytest.fail(message, pytrace=False)


@pytest.mark.parametrize("spec", ["domains", "languages", "treebank"])
def test_the_table_of_the_docs(spec):
    text = (REPOSITORY / "docs/data.md").read_text()
    for row in sources(spec):
        assert (
            f"| `{spec}` | {row['domain']} | {row['language']} | `{row['package']}` "
            f"{row['version']} | {row['licence']} | {row['documents']:,} | {row['bytes']:,} |"
        ) in text


def test_every_verse_is_there_in_every_language():
    sources("languages?only=en")
    found = documents("languages")
    assert len(found) == 31_102 * len(VERSIONS)
    units = [found[i : i + len(VERSIONS)] for i in range(0, len(found), len(VERSIONS))]
    assert all(len({d.parallel for d in unit}) == 1 for unit in units)
    assert all([d.language for d in unit] == list(VERSIONS) for unit in units)
    assert len({unit[0].parallel for unit in units}) == 31_102
    psalm = next(unit for unit in units if unit[0].parallel == 19_023_001)
    assert [d.text.split()[-1] for d in psalm[:4]] == ["nothing.", "rien.", "mangeln.", "faltará."]


def test_levels_are_harder_and_the_same_in_every_process():
    total = sum(row["documents"] for row in sources("reasoning?size=20"))
    assert total > 0.9 * 20 * 4 * len(TASKS)
    size = {}
    for document in documents("reasoning?size=20"):
        size.setdefault(document.difficulty, []).append(len(document.text))
    means = [sum(size[level]) / len(size[level]) for level in sorted(size)]
    assert sorted(size) == [0.0, 1.0, 2.0, 3.0]
    assert means == sorted(means)
    code = (
        "from moejax.data.evaluation import open_evaluation\n"
        "print([row['sha256'] for row in open_evaluation('reasoning?size=20').sources()])"
    )
    path = os.pathsep.join(filter(None, [str(REPOSITORY), *sys.path]))
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path},
        ).stdout
        for seed in ("1", "2")
    }
    assert hashes == {str([row["sha256"] for row in sources("reasoning?size=20")]) + "\n"}


def test_domains_are_text_and_not_markup():
    sources("domains?only=dialogue")
    for name, allowed in (("prose", 0.01), ("technical", 0.01), ("scripture", 0.01)):
        text = "".join(d.text for d in documents(f"domains?only={name}&limit_bytes=500000"))
        assert len(text) > 300_000
        assert sum(text.count(c) for c in "<>{}|`\\") < allowed * len(text), name
