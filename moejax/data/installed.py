"""Files of installed packages, found through the packages' own metadata and never imported."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

from moejax.config import ConfigError


def installed_files(
    distribution: str, pattern: str, who: str, install: str
) -> tuple[tuple[str, Path], ...]:
    """Returns (path inside site-packages, file) of what a package lists, sorted by that path.

    Only files of the package's own RECORD count: a stray file in site-packages changes nothing.

    Args:
      distribution: name on the package index.
      pattern: full match on the path inside site-packages.
      who: what needs it, for messages.
      install: the command that installs it.

    Raises:
      ConfigError: the package is absent, or lists no such file.
    """
    version = installed_version(distribution, who, install)
    listed = importlib.metadata.distribution(distribution).files or ()
    found = tuple(
        sorted(
            (record.as_posix(), Path(str(record.locate())))
            for record in listed
            if re.fullmatch(pattern, record.as_posix())
        )
    )
    if not found:
        raise ConfigError(
            f"{who}: the installed {distribution} {version} lists no file like {pattern}; "
            f"reinstall it: pip install --force-reinstall {distribution}"
        )
    return found


def installed_version(distribution: str, who: str, install: str) -> str:
    """Returns the version of an installed package; raises ConfigError if it is absent."""
    try:
        return importlib.metadata.distribution(distribution).version
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            f"{who} needs the package {distribution!r}; install it: {install}"
        ) from None
