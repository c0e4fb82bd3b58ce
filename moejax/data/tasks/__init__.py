"""Tasks to tune a model for: prompts and answers, split by document; docs/tasks.md.

`open_task("law").examples("train")` gives `Example`s; `render` puts the chat template around one.
"""

from moejax.data.tasks import code, dialogue, files, gym, law, translation
from moejax.data.tasks.contract import TASKS, Task, TaskPart, TaskSource, open_task
from moejax.data.tasks.example import CHAT, SPLITS, Example, examples_hash, render, split_of

__all__ = [
    "CHAT",
    "SPLITS",
    "TASKS",
    "Example",
    "Task",
    "TaskPart",
    "TaskSource",
    "code",
    "dialogue",
    "examples_hash",
    "files",
    "gym",
    "law",
    "open_task",
    "render",
    "split_of",
    "translation",
]
