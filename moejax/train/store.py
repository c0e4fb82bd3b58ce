"""A run's place in an object store: its URL, the client it needs, and what its errors mean.

Checkpoints go there through orbax and tensorstore, everything else through `etils.epath`, which
finds its client by itself. Nothing here, or above, asks a store for more than whole objects: put,
get, list, delete.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
from collections.abc import Iterator

import jax
from etils import epath

from moejax.config.knobs import ConfigError
from moejax.train.errors import RunError, StorageError, one_line

_BUCKET = r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"
_PART = r"(?!\.{1,2}(?:/|$))[\w.=+@~-]+"
_URL = re.compile(rf"gs://{_BUCKET}(?:/{_PART})*")
COMMITTED = "commit_success.txt"
"""Orbax's mark of a finished checkpoint where it cannot rename."""

_CLIENT = ("gcsfs", "google.cloud.storage", "fsspec.config")

_NO_ANSWER = re.compile(
    r"UNAVAILABLE|PERMISSION_DENIED|UNAUTHENTICATED|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED"
    r"|http_response_code='(?:401|403|408|429|5\d\d)'|Forbidden|HttpError"
)
_CLIENTS_OWN = ("aiohttp", "google", "requests", "urllib3", "gcsfs")


def check_url(url: str, path: str) -> None:
    """Refuses what is not a place for checkpoints; "" is the run directory itself.

    S3 is refused although epath and tensorstore both know it: orbax hands tensorstore a Google
    bucket or a local path, and takes `s3://` for the latter.

    Raises:
      ConfigError: neither empty nor `gs://BUCKET/PREFIX`.
    """
    if url and not _URL.fullmatch(url):
        raise ConfigError(
            f"{path}={url!r}: must be gs://BUCKET/PREFIX (Google Cloud Storage, the one store that "
            "orbax writes to; letters, digits and ._-=+@~ in its parts), or '' for the run "
            "directory"
        )


def open_store(url: str) -> epath.Path | None:
    """The place of a checked URL; None for "". Asks the store nothing yet.

    Raises:
      ConfigError: a package that reaches it is missing.
    """
    if not url:
        return None
    try:
        for module in _CLIENT:
            importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"config.checkpoint.dir={url}: needs a package that is not installed ({error.name}); "
            "pip install 'moejax[gcs]'"
        ) from error
    # A listing may be old: tensorstore and other processes write to the same place.
    config = importlib.import_module("fsspec.config").conf
    config.setdefault("gcs", {})["use_listings_cache"] = False
    # They log a traceback of what they raise as well; whoever catches it says it in one line.
    for name in ("gcsfs", "fsspec"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return epath.Path(url)


def is_remote(path: epath.Path) -> bool:
    """Whether a path is in a store, where there is no rename and no directory of its own."""
    return path.as_posix().startswith("gs://")


@contextlib.contextmanager
def asking(store: epath.Path, what: str) -> Iterator[None]:
    """What a store's clients raise (anything at all), in one line.

    Raises:
      StorageError: in place of any error that is neither this project's own nor of JAX's runtime.
    """
    try:
        yield
    except (ConfigError, RunError, jax.errors.JaxRuntimeError):  # the last: a lost process
        raise
    except Exception as error:
        raise StorageError(f"{store}: {what} failed ({one_line(error)})") from error


def is_silent(error: BaseException) -> bool:
    """Whether an error says that the store did not answer, or not us: nothing about its content."""
    causes: list[BaseException] = []
    while error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__ or error
    return any(
        isinstance(cause, ConnectionError | TimeoutError)
        or type(cause).__module__.partition(".")[0] in _CLIENTS_OWN
        or bool(_NO_ANSWER.search(f"{type(cause).__name__}: {cause}"))
        for cause in causes
    )


def holds_checkpoint(place: epath.Path) -> bool:
    """Whether a finished checkpoint is there. (Orbax deletes unfinished ones when it looks.)"""
    if not place.exists():
        return False
    steps = [entry for entry in place.iterdir() if entry.name.isdigit()]
    return any((step / COMMITTED).exists() or not is_remote(place) for step in steps)


def objects(place: epath.Path) -> list[epath.Path]:
    """Every object below a place, by name."""
    found: list[epath.Path] = []
    for entry in sorted(place.iterdir()):
        found += objects(entry) if entry.is_dir() else [entry]
    return found


def move_checkpoint(source: epath.Path, target: epath.Path) -> None:
    """Moves what is below `source`, as a store without rename can: all copies first, then deletes.

    The mark of a finished checkpoint is the last that is copied and the first that is deleted, so
    that neither place ever counts while it is not whole.
    """
    names = [entry.relative_to(source) for entry in objects(source)]
    names.sort(key=lambda name: name.as_posix() == COMMITTED)
    for name in names:
        (source / name).copy(target / name, overwrite=True)
    for name in reversed(names):
        (source / name).unlink()
