"""The commands of tools.convert: what defines the flags of each, and what runs it."""

from __future__ import annotations

from typing import Any

from absl import flags


def value(name: str) -> Any:
    """Of a flag of the command that runs."""
    return flags.FLAGS[name].value
