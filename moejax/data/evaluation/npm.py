"""What the sets that read an unpacked npm package share."""

from __future__ import annotations

from pathlib import Path

from moejax.config import ConfigError, read_json


def package_version(root: Path) -> str:
    """Returns the version in the package's package.json; raises ConfigError if there is none."""
    file = root / "package.json"
    found = read_json(file)
    version = found.get("version") if isinstance(found, dict) else None
    if not isinstance(version, str) or len(version) > 100 or not version.isprintable():
        raise ConfigError(f"{file}: names no version")
    return version
