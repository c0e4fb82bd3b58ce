from __future__ import annotations

import pytest
from grid_roots import Root, Zygote


@pytest.fixture
def root(tmp_path):
    """Makes a root with some cells: `root(cell("a"), cell("b", fault="nan"))`."""
    return lambda *cells: Root(tmp_path / "root", *cells)


@pytest.fixture(scope="session")
def zygote():
    one = Zygote()
    yield one
    one.close()
