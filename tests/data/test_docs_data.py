"""docs/data.md says what is so."""

from pathlib import Path

import embedded_golden

from moejax.config import read_json
from moejax.data import TOKEN_CLASSES
from moejax.data.corpora.embedded import EmbeddedCorpus

DOCS = Path(__file__).resolve().parent.parent.parent / "docs" / "data.md"


def test_the_snippet_runs(small_config, monkeypatch):
    monkeypatch.setenv("MOEJAX_CACHE", small_config.cache_dir)
    code = DOCS.read_text().split("```python\n")[1].split("```")[0]
    exec(compile(code, "docs/data.md", "exec"), {})


def test_the_tables_are_those_measured():
    text = DOCS.read_text()
    for row in EmbeddedCorpus().sources():
        assert f"| `{row['package']}` {row['version']} | {row['licence']}" in text
        assert f"| {row['bytes']:,} |" in text
    for row in read_json(embedded_golden.FILE)["documents"]:
        held = f"{row['validation_documents']:,} | {row['validation_bytes']:,}"
        line = f"| `{row['domain']}` | {row['documents']:,} | {row['bytes']:,} | {held} |"
        assert line in text


def test_every_token_class_is_defined():
    text = DOCS.read_text()
    assert all(f"`{name}`" in text for name in TOKEN_CLASSES)
