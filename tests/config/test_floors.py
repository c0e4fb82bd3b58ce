"""The floors of docs/architecture.md: an import may only point down."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
FLOORS = [  # top to bottom
    "experiments",
    "tools",
    "configs",
    "grid",
    "finetune",
    "finetune",
    "surgery",
    "interop",
    "probe",
    "analysis",
    "train",
    "data",
    "models",
    "experts",
    "routing",
    "sharding",
    "config",
]
ACCELERATED = {"jax", "jaxlib", "flax", "optax", "orbax"}
WITHOUT_JAX = {"config", "data", "analysis"}
FILES = sorted(
    path
    for top in ("moejax", "experiments", "tools", "configs")
    for path in (REPOSITORY / top).rglob("*.py")
)


def floor_of(path):
    parts = path.relative_to(REPOSITORY).parts
    return parts[1].removesuffix(".py") if parts[0] == "moejax" else parts[0]


def imports_of(path):
    """Returns (line, dotted name) of every import of a file, those inside functions included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import hides its floor"
            names = [alias.name for alias in node.names]
            if node.module in ("moejax",):  # from moejax import routing
                found += [(node.lineno, f"moejax.{name}") for name in names]
            else:
                found.append((node.lineno, node.module))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_point_down(path):
    floor = floor_of(path)
    if floor == "__init__":
        return  # moejax/__init__.py holds the version; what it imports is judged by its own floor
    assert floor in FLOORS, f"{path}: {floor!r} is no floor of the house"
    here = FLOORS.index(floor)
    for line, name in imports_of(path):
        parts = name.split(".")
        if parts[0] in ACCELERATED:
            assert floor not in WITHOUT_JAX, f"{path}:{line}: {floor} does without {parts[0]}"
        target = parts[1] if parts[0] == "moejax" and len(parts) > 1 else parts[0]
        if target not in FLOORS or (parts[0] != "moejax" and target not in FLOORS[:3]):
            continue
        if floor == "analysis":
            assert target in ("analysis", "config"), f"{path}:{line}: analysis reads files only"
        assert FLOORS.index(target) >= here, f"{path}:{line}: {floor} imports {target} above it"


def test_the_package_imports_nothing_by_itself():
    assert imports_of(REPOSITORY / "moejax" / "__init__.py") == []
