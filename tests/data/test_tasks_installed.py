"""Tasks with the packages they are made of; docs/tasks.md has their table.

Needs the extras `eval` and `multilingual`, and reasoning-gym; without them the tests fail and say
so.
"""

from pathlib import Path

import pytest

from moejax.config import ConfigError
from moejax.data.tasks import SPLITS, TASKS, open_task

pytestmark = pytest.mark.all

DOCS = Path(__file__).resolve().parent.parent.parent / "docs" / "tasks.md"
KINDS = [name for name in TASKS.names() if name != "files"]


def opened(spec):
    task = open_task(spec)
    try:
        task.examples("train")
        return task
    except ConfigError as error:
        message = str(error)
    pytest.fail(message, pytrace=False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_of_tasks_in_the_docs(kind):
    task, text = opened(kind), DOCS.read_text()
    documents = {}
    for split in SPLITS:
        examples = task.examples(split)
        prompts = sum(len(e.prompt.encode()) for e in examples)
        answers = sum(len(e.answer.encode()) for e in examples)
        documents[split] = {e.document for e in examples}
        assert (
            f"| `{kind}` | {split} | {len(examples):,} | {len(documents[split]):,} | "
            f"{prompts:,} | {answers:,} |"
        ) in text
    assert not documents["train"] & (documents["validation"] | documents["test"])
    assert min(map(len, documents.values())) >= 20 and len(task.examples("train")) >= 300


def test_no_verse_is_trained_on_in_one_language_and_tested_in_another():
    home = {}
    for target in ("fr", "de", "ru"):
        task = opened(f"translation?target={target}&longest=200")
        for split in SPLITS:
            for example in task.examples(split):
                assert home.setdefault(example.id, split) == split
    assert len(home) > 20_000
