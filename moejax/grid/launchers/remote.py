"""A cell on machines that do not see the root's file system: its name and flags there."""

from __future__ import annotations

import re

from moejax.grid.launchers import Spec

LOCAL_RUNS = "/tmp/moejax"
"""On the other machine's own disk, where its checkpoints and a mirror go to a bucket."""


def job_name(grid: str, directory: str) -> str:
    """A name that Kubernetes and Google Cloud accept: at most 40 of a-z, 0-9 and -.

    It ends in the cell's hash, which tells the cells of a grid apart.
    """
    identity = directory.rpartition("-")[2].lower()
    slug = re.sub(r"[^a-z0-9]+", "-", grid.lower()).strip("-")
    slug = slug if slug[:1].isalpha() else f"grid-{slug}".rstrip("-")
    return f"{slug[: 39 - len(identity)].rstrip('-')}-{identity}"


def elsewhere(spec: Spec, remote_root: str) -> list[str]:
    """The cell's flags with its directory under the root as it is called over there."""
    root = remote_root.rstrip("/")
    if root.startswith("gs://"):
        store = f"--config.checkpoint.dir={root}/{spec.directory}"
        return [*spec.argv, store, f"--workdir={LOCAL_RUNS}/{spec.directory}"]
    return [*spec.argv, f"--workdir={root}/{spec.directory}"]
