"""A labelled set as training text, and the program that prints what sets are made of."""

import subprocess
import sys
from pathlib import Path

import pytest
from data_samples import STORY, files_config, text_of, write_jsonl

from moejax.config import ConfigError
from moejax.data import prepare
from moejax.data.corpora import open_corpus
from moejax.data.evaluation import open_evaluation

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def verses(count, languages=("en", "fr")):
    return [
        {"text": f"{language} {i}. {STORY}", "domain": "s", "language": language, "parallel": i}
        for language in languages
        for i in range(count)
    ]


def config_of(tmp_path, options="", **changes):
    return files_config(tmp_path, corpus=f"labelled:files:{tmp_path}/a.jsonl{options}", **changes)


def test_a_set_is_a_corpus(tmp_path):
    rows = [
        {"text": f"{domain} {i}. {STORY}", "domain": domain, "language": "en"}
        for domain in ("law", "code")
        for i in range(10)
    ]
    write_jsonl(tmp_path / "a.jsonl", rows)
    dataset = prepare(config_of(tmp_path))
    train, held = text_of(dataset.train, dataset), text_of(dataset.validation, dataset)
    assert sorted(train + held) == sorted(row["text"] for row in rows)
    assert sorted(text.split()[0] for text in held) == ["code", "code", "law", "law"]
    assert set(dataset.domains) == {"law", "code"}
    assert [row["domain"] for row in dataset.manifest["sources"]] == ["law", "code"]
    assert dataset.info()["corpus"] == "labelled"


def test_aligned_units_are_held_out_in_every_language(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", verses(20))
    config = config_of(tmp_path)
    dataset = prepare(config)
    held = text_of(dataset.validation, dataset)
    numbers = {
        language: {text.split(".")[0].split()[1] for text in held if text.startswith(language)}
        for language in ("en", "fr")
    }
    assert len(numbers["en"]) == 4
    assert numbers["en"] == numbers["fr"]
    labelled = list(open_corpus(config).held_out())
    assert [document.text for document in labelled] == held
    assert {str(document.parallel) for document in labelled} == numbers["en"]


def test_options_and_labels_are_part_of_the_corpus(tmp_path):
    rows = verses(12)
    write_jsonl(tmp_path / "a.jsonl", rows)
    whole = prepare(config_of(tmp_path))
    part = prepare(config_of(tmp_path, "?only=fr"))
    assert part.languages == ("fr",)
    assert prepare(config_of(tmp_path, "?limit_bytes=900")).train.num_documents < 20
    rows[0]["parallel"] = 100
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert prepare(config_of(tmp_path)).manifest_hash != whole.manifest_hash


@pytest.mark.parametrize(
    "spec, message",
    [
        ("", "'labelled:': needs an argument; nearest valid: labelled:SPEC"),
        ("domain", "unknown evaluation set; did you mean 'domains'?"),
        ("domains?x=1", "'domains?x=1': unknown option 'x'; valid options: only, limit_bytes"),
        ("files:/nowhere/*.jsonl", "files:/nowhere/*.jsonl: matches no file"),
    ],
)
def test_a_bad_set_is_one_line(tmp_path, spec, message):
    with pytest.raises(ConfigError) as caught:
        prepare(files_config(tmp_path, corpus=f"labelled:{spec}"))
    assert message in str(caught.value)


def test_the_program_prints_a_table_and_a_mistake(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", verses(3))
    spec = f"files:{tmp_path}/a.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "tools.corpora", f"--set={spec}", "--set=domain"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(
        "error: evaluation set='domain': unknown evaluation set; did you mean 'domains'?; known: "
    )
    assert done.stderr.count("\n") == 1
    size = open_evaluation(spec).sources()[0]["bytes"]
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0][0] == spec
    assert rows[2][:7] == ["s", "en", "a.jsonl", "your", "own", "3", str(size)]


def test_the_snippet_of_the_docs_runs():
    code = (REPOSITORY / "docs/data.md").read_text().split("```python\n")[2].split("```")[0]
    exec(compile(code, "docs/data.md", "exec"), {})
