"""docs/routing_metrics.md has every metric, and none that there is not."""

import contextlib
import dataclasses
import importlib
import io
import pkgutil
import re
from pathlib import Path

from moejax.analysis import routing

PAGE = Path(__file__).parents[2] / "docs" / "routing_metrics.md"
MODULES = {
    info.name: importlib.import_module(f"{routing.__name__}.{info.name}")
    for info in pkgutil.iter_modules(routing.__path__)
}


def public():
    """(file, name, thing) of what each file defines itself."""
    for file, module in MODULES.items():
        for name, thing in vars(module).items():
            own = getattr(thing, "__module__", "") == module.__name__
            if own and callable(thing) and not name.startswith("_"):
                yield file, name, thing


def test_every_metric_is_on_the_page():
    text = PAGE.read_text()
    metrics = [x for x in public() if x[0] != "tables" and not dataclasses.is_dataclass(x[2])]
    assert len(metrics) > 50
    for file, name, _ in metrics:
        assert f"`{file}.{name}`" in text, f"{PAGE.name} does not have {file}.{name}"


def test_the_page_names_nothing_that_is_not_there():
    known = {f"{file}.{name}" for file, name, _ in public()}
    for file, name in re.findall(r"`(\w+)\.(\w+)`", PAGE.read_text()):
        if file in MODULES and name != "py":
            assert f"{file}.{name}" in known, f"there is no {file}.{name}"


def test_the_example_prints_what_the_page_says():
    example, printed = re.search(
        r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE.read_text(), re.S
    ).groups()
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(example, PAGE.name, "exec"), {})
    assert out.getvalue() == printed
