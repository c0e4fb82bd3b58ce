"""Flags: one-line answers where ml_collections would let a lookup's traceback out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import config_dict
from ml_collections.config_flags import config_flags

from moejax.config.knobs import nearest


def explain_file(name: str, argv: Sequence[str]) -> str:
    """Returns what is wrong with `--NAME=FILE[:argument]` when there is no such file, else ""."""
    value = _value_of(name, argv)
    if value is None:
        return ""
    file = Path(value.split(":", 1)[0])
    if file.is_file():
        return ""
    siblings = sorted(file.parent.glob("*.py")) if file.parent.is_dir() else []
    siblings = [path for path in siblings if path.name != "__init__.py"]
    hint = nearest(file.name, [path.name for path in siblings])
    listing = ", ".join(map(str, siblings))
    hint = hint or (f"; config files there: {listing}" if listing else "")
    return f"--{name}={value}: no such config file{hint}"


def explain_override(name: str, argv: Sequence[str]) -> str:
    """Returns what is wrong with the first `--NAME.key=value` whose key is not there, else "".

    ml_collections looks overridden keys up while it parses the command line and lets the lookup's
    own exception out (AttributeError, KeyError, IndexError, ValueError). Ask this then: the config
    is made once more, by the `--NAME=FILE[:argument]` of the same command line.
    """
    value = _value_of(name, argv)
    if value is None:
        return ""
    cfg = config_flags.ConfigFileFlagParser(name).parse(value)
    for arg in argv[1:]:
        key = arg.lstrip("-").partition("=")[0]
        # absl writes `--noconfig.key` for a bool that is switched off.
        key = key.removeprefix("no") if key.startswith(f"no{name}.") else key
        if arg.startswith("-") and key.startswith(f"{name}."):
            problem = explain_key(cfg, key.removeprefix(f"{name}."), name)
            if problem:
                return problem
    return ""


def explain_key(cfg: Any, key: str, path: str = "config") -> str:
    """Returns why the dotted `key` cannot be set in a ConfigDict, or "" if it can."""
    node = cfg
    for part in key.replace("[", ".[").split("."):
        if part.startswith("["):
            index = part[1:].removesuffix("]")
            if not isinstance(node, tuple | list):
                return f"{path}{part}: {path} is not a tuple"
            if not index.isdigit() or int(index) >= len(node):
                return f"{path}{part}: no such element; {path} has {len(node)}"
            node, path = node[int(index)], f"{path}{part}"
            continue
        if node is None:
            return f"{path}.{part}: cannot be set, because {path} is None here"
        if not isinstance(node, config_dict.ConfigDict):
            return f"{path}.{part}: unknown key; {path} is a value, not a group of keys"
        if part not in node:
            hint = nearest(part, node.keys()) or f"; valid keys: {', '.join(sorted(node.keys()))}"
            return f"{path}.{part}: unknown key{hint}"
        node, path = node[part], f"{path}.{part}"
    return ""


def _value_of(name: str, argv: Sequence[str]) -> str | None:
    found = None
    for i, arg in enumerate(argv):
        if arg in (f"--{name}", f"-{name}") and i + 1 < len(argv):
            found = argv[i + 1]
        elif arg.startswith((f"--{name}=", f"-{name}=")):
            found = arg.partition("=")[2]
    return found
