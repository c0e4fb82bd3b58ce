"""docs/routers.md: its table is the registry's, its router passes the battery and is a config."""

from __future__ import annotations

import sys

import documents
import pytest
from ml_collections.config_flags import config_flags

from moejax.config import build
from moejax.routing import ROUTERS
from moejax.train import Experiment

PAGE = documents.REPOSITORY / "docs" / "routers.md"


def test_the_table_is_that_of_the_registry():
    [table] = documents.router_tables(PAGE.read_text())
    assert table == documents.router_table(), (
        "the table is out of date; python tests/docs/documents.py docs/routers.md"
    )
    names = [name for name in ROUTERS.names() if f"[`{name}`]" in table]
    assert len(names) == len(table.splitlines()) - 2 >= 10


@pytest.fixture
def own_registry(monkeypatch, tmp_path):
    """Routers that the page registers are gone after the test."""
    monkeypatch.setattr(ROUTERS, "_classes", dict(ROUTERS._classes))
    monkeypatch.syspath_prepend(tmp_path)
    yield ROUTERS
    sys.modules.pop("stretches", None)


def test_the_readers_router_passes_the_battery(tmp_path, own_registry):
    _, outputs = documents.run(PAGE, tmp_path)
    sys.modules.pop("document_routers")
    assert len(outputs) == 2
    for block, printed in outputs:
        assert printed == block.text


def test_the_readers_file_is_a_config(tmp_path, own_registry):
    [file] = [b for b in documents.blocks(PAGE.read_text()) if b.text.startswith("# stretches.py")]
    (tmp_path / "stretches.py").write_text(file.text)
    parser = config_flags.ConfigFileFlagParser("config")
    config = parser.parse(f"{tmp_path / 'stretches.py'}:size=nano,moe=hash,quick=true")
    config.model.moe.router.span = 16
    experiment = build(Experiment, config)
    assert experiment.model.moe.router == own_registry.get("stretches")(span=16)
