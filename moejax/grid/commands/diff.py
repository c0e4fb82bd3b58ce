"""`diff A B`: config, environment and code of two cells or run directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moejax.analysis import text
from moejax.config import ConfigError, diff, nearest, read_json
from moejax.config.knobs import show
from moejax.grid import record
from moejax.grid.arguments import Arguments
from moejax.grid.places import Places

_LEFT_OUT = (
    "format_version", "started", "history", "changes", "attempt", "bitwise_comparable", "argv",
)  # fmt: skip
"""Of env.json: what differs between any two runs and says nothing, or says what the config does."""


def main(arguments: Arguments) -> int:
    """Prints the differences; 0 whether or not there are any.

    Raises:
      ConfigError: one of the two is neither a run directory nor a cell of the root.
    """
    sides = [_side(name, arguments.root) for name in arguments.names]
    rows = {
        part: [
            (key, text.redact(key, _plain(old)), text.redact(key, _plain(new)))
            for key, old, new in diff(sides[0][part], sides[1][part])
        ]
        for part in ("config", "environment", "git")
    }
    if arguments.json:
        found = {part: {key: [a, b] for key, a, b in own} for part, own in rows.items()}
        who = [side["name"] for side in sides]
        print(json.dumps({"format_version": 1, "runs": who} | found, indent=2))
        return 0
    print(f"{text.clean(sides[0]['name'])} -> {text.clean(sides[1]['name'])}")
    for part, own in rows.items():
        unknown = [side["name"] for side in sides if not side[part]]
        if unknown:
            print(f"{part}: unknown of {text.clean(', '.join(unknown))}, which has not started")
            continue
        print(f"{part}: {'the same' if not own else ''}".rstrip())
        for key, old, new in own:
            print(text.clean(f"  {key}: {show(old)} -> {show(new)}", 400))
    return 0


def _side(name: str, root: str) -> dict[str, Any]:
    """Config, environment and git of a run directory, or of a cell that may not have started."""
    run = Path(name).expanduser()
    config: dict[str, Any] | None = None
    if not (run / "config.json").is_file():
        if not root:
            raise ConfigError(
                f"{name}: is no run directory (config.json is missing); for a cell's name give "
                "--root=DIR too"
            )
        cells = {one.name: one for one in record.load(root).cells if not one.vanished}
        cells |= {one.directory: one for one in record.load(root).cells}
        if name not in cells:
            hint = nearest(name, cells) or f"; cells: {text.listing(list(cells), 4)}"
            raise ConfigError(f"{name}: is no run directory and no cell of {root}{hint}")
        config = cells[name].config
        run = Places(root).workdir(cells[name].directory)
    if (run / "config.json").is_file():
        config = _object(run / "config.json").get("config")
    env = _object(run / "env.json") if (run / "env.json").is_file() else {}
    git = env.pop("git", {})
    env = {key: value for key, value in env.items() if key not in _LEFT_OUT}
    return {"name": name, "config": config or {}, "environment": env, "git": git or {}}


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: is not a JSON object")
    return value


def _plain(value: object) -> object:
    known = isinstance(value, None | bool | int | float | str | list | dict)
    return value if known else str(value)
