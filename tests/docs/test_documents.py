"""The documents do not rot: links, commands, names, knobs, examples and floors hold today."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import pkgutil
import re
import sys
from pathlib import Path

import documents
import jax
import jax.numpy as jnp
import pytest

import moejax.config
import moejax.experts
import moejax.models
import moejax.routing
from configs import lm
from moejax.config import counts
from moejax.config.flags import explain_key
from moejax.config.knobs import Knob, knob_of
from moejax.config.widths import STRATEGIES
from moejax.data import DataConfig
from moejax.experts.backends.grouped_matmul import MATMULS
from moejax.experts.ffn import BACKENDS
from moejax.experts.spec import ACTIVATIONS
from moejax.models.attention import BACKENDS as ATTENTION_BACKENDS
from moejax.models.config import DTYPES
from moejax.models.remat import POLICIES
from moejax.routing import (
    CAUSES,
    ROUTERS,
    LossesConfig,
    RouterInputs,
    Routing,
    health,
    routing_stats,
)
from moejax.routing.losses import CONVENTIONS

REPOSITORY = documents.REPOSITORY
DOCS = REPOSITORY / "docs"
DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
OURS = [DOCS / f"{name}.md" for name in ("architecture", "routing", "experts", "models")]


def each_document(function):
    return pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)(function)


# ---- links


def without_code(text):
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))


def anchors(path):
    """The anchors that GitHub gives the headings of a document."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_document
def test_links_lead_somewhere(path):
    # A link's text may be code; its target may not.
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for target in targets:
        if re.match(r"(https?|mailto):", target):
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file) if file else path
        assert place.exists(), f"{path.name}: {target} does not exist"
        assert not anchor or anchor in anchors(place), f"{path.name}: no heading for {target}"


@each_document
def test_files_named_exist(path):
    for name in re.findall(
        r"`((?:moejax|tests|configs|experiments|tools|docs)/[\w./-]+)`", path.read_text()
    ):
        assert (REPOSITORY / name).exists(), f"{path.name}: there is no {name}"


# ---- commands


def code(path):
    """Everything that is set as code, with continued lines joined."""
    text = path.read_text()
    inline = re.findall(r"`([^`\n]+)`", without_blocks(text))
    return [block.text.replace("\\\n", " ") for block in documents.blocks(text)] + inline


def without_blocks(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def commands(path, start):
    """Commands that begin with `start`, as they stand in code, without comments."""
    lines = [line.strip() for text in code(path) for line in text.splitlines()]
    return [line.split(" #")[0] for line in lines if line.startswith(start)]


@each_document
def test_make_targets_exist(path):
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    for command in commands(path, "make "):
        words = [word for word in command.split()[1:] if "=" not in word]
        for word in words:
            assert word in targets, f"{path.name}: make has no target {word!r}"


def program(module):
    path = REPOSITORY / module.replace(".", "/")
    found = (path.with_name(path.name + ".py"), path / "__main__.py")
    return next((file for file in found if file.is_file()), None)


@each_document
def test_programs_and_their_flags_exist(path):
    for command in commands(path, "python -m "):
        module = command.split()[2]
        if module == "pytest":
            continue
        source = program(module)
        assert source, f"{path.name}: python -m {module}: there is no such program"
        files = [source]
        if module == "tools.convert":  # each command defines its own
            files += (REPOSITORY / "tools" / "conversions").glob("*.py")
        if "define_process_flags()" in source.read_text():
            files.append(REPOSITORY / "moejax" / "train" / "process_flags.py")
        text = "".join(file.read_text() for file in files)
        flags = set(re.findall(r'DEFINE_\w+\(\s*"([\w-]+)"', text)) | {"help"}
        if module == "tools.prepare":  # it makes a flag of every knob of the data
            flags |= {field.name for field in dataclasses.fields(DataConfig)}
        for flag in re.findall(r"\s--([\w-]+)", command):
            assert {flag, flag.removeprefix("no")} & flags, (
                f"{path.name}: {module} has no flag --{flag}"
            )


@each_document
def test_overrides_are_keys_of_the_config(path):
    for command in commands(path, "python -m "):
        file = re.search(r"--config=configs/(\w+)\.py(?::(\S+))?", command)
        if not file:
            continue
        config = importlib.import_module(f"configs.{file[1]}").get_config(file[2])
        for key in re.findall(r"--config\.([\w.\[\]]+)=", command):
            assert not explain_key(config, key), f"{path.name}: {explain_key(config, key)}"


# ---- names


def test_every_choice_is_in_the_docs():
    where = {
        "routers": [
            name for name in ROUTERS.names() if ROUTERS.get(name).__module__.startswith("moejax")
        ],
        "routing": [
            *CONVENTIONS,
            *CAUSES,
            *(field.name for field in dataclasses.fields(LossesConfig)),
            *(field.name for field in dataclasses.fields(Routing)),
            *(field.name for field in dataclasses.fields(RouterInputs)),
        ],
        "experts": [*STRATEGIES, *BACKENDS, *MATMULS, *ACTIVATIONS, "auto", "explicit"],
        "models": [*ATTENTION_BACKENDS, *POLICIES, *DTYPES],
    }
    for name, words in where.items():
        text = (DOCS / f"{name}.md").read_text()
        for word in words:
            assert f"`{word}`" in text, f"docs/{name}.md does not say what {word!r} is"


def test_every_health_metric_is_in_the_docs():
    def metrics():
        slots_TK, ones_T, probs_TE = jnp.zeros((2, 1), int), jnp.ones(2, int), jnp.ones((2, 4)) / 4
        routing = Routing(slots_TK, jnp.ones((2, 1)), ones_T, probs_TE, probs_TE, 4, 2)
        return health(routing_stats(routing, RouterInputs.of(2)), (1,) * 4)

    text = (DOCS / "routing.md").read_text()
    for name in jax.eval_shape(metrics):
        shown = "dropped/<cause>" if name.startswith("dropped/") else name
        assert f"`{shown}`" in text, f"docs/routing.md does not say what {name} is"


def test_the_readme_names_every_size_and_kind():
    text = (REPOSITORY / "README.md").read_text()
    for word in (*lm.SIZES, *lm.KINDS):
        assert f"`{word}`" in text, f"README.md does not name {word}"
    assert f"{len(CONVENTIONS)} conventions" in text


def test_the_counting_convention_is_that_of_the_runs():
    quoted = re.findall(r"^> (.*)$", (DOCS / "architecture.md").read_text(), re.M)
    assert " ".join(quoted) == counts.CONVENTION


# ---- knobs


@each_document
def test_knob_tables_are_those_of_the_code(path):
    for dotted, table in documents.knob_tables(path.read_text()):
        assert table == documents.knob_table(dotted), (
            f"{path.name}: the table of {dotted} is out of date; "
            "python tests/docs/documents.py " + str(path.relative_to(REPOSITORY))
        )


def dataclasses_with_knobs(package):
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        for cls in vars(importlib.import_module(info.name)).values():
            if isinstance(cls, type) and dataclasses.is_dataclass(cls):
                fields = dataclasses.fields(cls)
                if cls.__module__ == info.name and any(knob_of(f) != Knob() for f in fields):
                    yield cls


def test_every_component_has_a_knob_table():
    described = set()
    for path in DOCUMENTS:
        for dotted, _ in documents.knob_tables(path.read_text()):
            module, _, name = dotted.rpartition(".")
            described.add(getattr(importlib.import_module(module), name))
    floors = (moejax.routing, moejax.experts, moejax.models, moejax.config)
    for cls in {cls for floor in floors for cls in dataclasses_with_knobs(floor)}:
        assert cls in described, f"no document has the knobs of {cls.__module__}.{cls.__name__}"


# ---- examples


@pytest.mark.slow
@pytest.mark.parametrize("name", ["routing", "experts", "models", "performance"])
def test_examples_print_what_the_document_says(name, tmp_path, monkeypatch):
    monkeypatch.setattr(ROUTERS, "_classes", dict(ROUTERS._classes))
    monkeypatch.syspath_prepend(tmp_path)
    _, outputs = documents.run(DOCS / f"{name}.md", tmp_path)
    sys.modules.pop(f"document_{name}")
    assert outputs
    for block, printed in outputs:
        assert printed == block.text


# ---- floors


def documented_floors():
    """The floors of docs/architecture.md from top to bottom."""
    text = (DOCS / "architecture.md").read_text().split("## Floors")[1]
    listed = documents.blocks(text)[0].text.splitlines()
    return [line.split()[0].rstrip("/").removeprefix("moejax/") for line in listed]


def floor_of(path):
    parts = path.relative_to(REPOSITORY).parts
    return parts[1] if parts[0] == "moejax" else parts[0]


def python_files():
    for top in ("moejax", "experiments", "tools", "configs"):
        yield from (p for p in (REPOSITORY / top).rglob("*.py") if p.parent.name != "moejax")


def test_the_floors_are_those_of_the_tree():
    packages = {path.parent.name for path in (REPOSITORY / "moejax").glob("*/__init__.py")}
    floors = documented_floors()
    assert set(floors) == packages | {"experiments", "tools", "configs"}
    assert len(floors) == len(set(floors))


def test_imports_point_down_the_documented_floors():
    floors = documented_floors()
    for path in python_files():
        here = floors.index(floor_of(path))
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                floor = str(name).removeprefix("moejax.").split(".")[0]
                if str(name).split(".")[0] not in ("moejax", *floors[:3]) or floor not in floors:
                    continue
                assert floors.index(floor) >= here, f"{path}:{node.lineno} imports {name} above it"


def test_floors_without_jax_say_so():
    text = (DOCS / "architecture.md").read_text()
    for floor in ("config", "data", "analysis"):
        line = next(li for li in text.splitlines() if li.startswith(f"moejax/{floor} "))
        assert "jax" in line.split(floor, 1)[1]


# ---- the helper itself


def test_an_outdated_table_or_output_is_noticed_and_rewritten(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "sample.md"
    path.write_text(
        "<!-- knobs: moejax.experts.WidthPlan -->\n| old |\n\n"
        "```python\n# mine.py\nvalue = 3\n```\n\n"
        "```python\nimport mine\nprint(mine.value)\n```\n\n```text\n2\n```\n"
    )
    assert documents.rewrite(path)
    text = Path(path).read_text()
    assert documents.knob_tables(text) == [
        ("moejax.experts.WidthPlan", documents.knob_table("moejax.experts.WidthPlan"))
    ]
    assert documents.blocks(text)[-1].text == "3\n"
    assert not documents.rewrite(path)
    sys.modules.pop("mine")
