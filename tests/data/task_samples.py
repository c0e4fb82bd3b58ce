"""Packages that tasks are read from, made on the spot, and tasks of files."""

import gzip
import json

import numpy as np
from data_samples import files_config, records, write_jsonl
from evaluation_samples import bible

from moejax.data import prepare, task_data
from moejax.data.tasks import split_of

FACTORY = """
import types

class Curriculum:
    def set_global_level(self, level):
        self.level = level

    def generate_configuration(self, settings, context):
        return types.SimpleNamespace(level=self.level, **settings)

def create_curriculum(name):
    return Curriculum()

def create_dataset(name, level, seed, size):
    for i in range(size):
        number = (seed + i) % 1000 if name != "gcd" else (seed + i) % 7
        yield {"question": f" {name} of {number}? ", "answer": number + 1}
"""
BASE = """
class RangeAttributeMode:
    UPPER_BOUND = "upper"

class DefaultCurriculumContext:
    def __init__(self, mode):
        self.mode = mode
"""
MODULE = '''"""A module."""

def area(width, height):
    """The area of a rectangle.

    More than anyone wants to know.
    """
    return width * height


class Circle:
    def radius(self):
        """Half of the diameter."""
        half = self.diameter / 2
        return half

    def bare(self):
        return 1
'''


def licence(category, *clauses, language="en"):
    body = "\n\n".join(clauses)
    return f"---\nkey: x\ncategory: {category}\nlanguage: {language}\n---\n\n{body}\n"


def clause(number, length=30):
    words = [f"{chr(97 + number % 26)}{chr(97 + k % 26)}word" for k in range(length)]
    return " ".join(words) + "."


def gym_files():
    return {
        "reasoning_gym/__init__.py": "",
        "reasoning_gym/factory.py": FACTORY,
        "reasoning_gym/coaching/__init__.py": "",
        "reasoning_gym/coaching/base_curriculum.py": BASE,
    }


def problem(number):
    row = {
        "task_id": f"HumanEval/{number}",
        "entry_point": "add",
        "prompt": f'def add(a, b):\n    """ Adds {number}.\n    >>> add(1, 2)\n    """\n',
        "canonical_solution": f"    return a + b + {number}\n",
    }
    return json.dumps(row)


def problems(count):
    return gzip.compress("\n".join(problem(n) for n in range(count)).encode(), mtime=0)


def said(version, chapter, verse):
    """The twelfth chapter has longer verses."""
    return f"{version} says {chapter} and {verse}" + " and more" * (chapter // 12)


def verses(file, chapters=12):
    """A database with verses of two versions, in so many chapters."""
    import sqlite3

    bible(file, ["4"])
    connection = sqlite3.connect(file)
    connection.execute("DELETE FROM bible")
    for version in ("4", "l", "e"):
        rows = [
            (
                version,
                1,
                chapter,
                verse,
                f"{version} says {chapter} and {verse}" + " and more" * (chapter // 12),
            )
            for chapter in range(1, chapters + 1)
            for verse in (1, 2)
        ]
        connection.executemany("INSERT INTO bible VALUES (?, ?, ?, ?, ?)", rows)
    connection.commit()
    connection.execute("VACUUM")
    connection.close()
    return file.read_bytes()


def rows(count, answer="the answer is {n}", document="d{d}"):
    """Examples of a file, two in a document."""
    return [
        {
            "prompt": f"question number {n}",
            "answer": answer.format(n=n),
            "document": document.format(d=n // 2),
            "domain": "even" if n % 2 == 0 else "odd",
            "language": "en",
        }
        for n in range(count)
    ]


def base_config(folder, **changes):
    """The data of a base model: two domains of text as bytes."""
    write_jsonl(folder / "text" / "a.jsonl", records(12, "tale") + records(12, "song"))
    values = {"tokenizer": "bytes", "seq_len": 64, "cache_dir": str(folder / "cache")}
    return files_config(folder / "text", **(values | changes))


def task_config(folder, examples, **options):
    write_jsonl(folder / "task" / "t.jsonl", examples)
    return task_data(base_config(folder), f"task:files:{folder}/task/*.jsonl", **options)


def task_dataset(folder, examples, **options):
    config = task_config(folder, examples, **options)
    return config, prepare(config)


def splits_of(kind, examples):
    """Documents of each split, from the rule alone."""
    found = {"train": set(), "validation": set(), "test": set()}
    for example in examples:
        found[split_of(kind, example.document)].add(example.document)
    return found


def learned_text(batch, row, tokenizer):
    """The text of the targets that count in a row."""
    return tokenizer.decode(batch["targets"][row][np.asarray(batch["loss_mask"][row]) > 0])
