"""Prompts from the command line and from files."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moejax.config import ConfigError, nearest

MAX_BYTES = 64 << 20


def read_prompts(given: Sequence[str], files: Sequence[str]) -> list[str]:
    """The prompts of the command line, then those of the files.

    Raises:
      ConfigError: there is none, or a file is missing, too large, or no text.
    """
    prompts = list(given)
    for name in files:
        if name == "-":
            prompts.append(sys.stdin.read().removesuffix("\n"))
            continue
        path = Path(name)
        if not path.is_file():
            siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise ConfigError(f"--prompt_file={name}: no such file{nearest(path.name, siblings)}")
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"--prompt_file={name}: has more than {MAX_BYTES >> 20} MiB")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"--prompt_file={name}: is no UTF-8 text ({error})") from None
        prompts += _lines(name, text) if path.suffix == ".jsonl" else [text.removesuffix("\n")]
    if not prompts:
        raise ConfigError("--prompt: is required, e.g. --prompt='The cat'")
    return prompts


def _lines(name: str, text: str) -> list[str]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            record: Any = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"--prompt_file={name}: line {number} is no JSON ({error})") from None
        if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
            raise ConfigError(f"--prompt_file={name}: line {number} has no text `prompt`")
        found.append(record["prompt"])
    return found
