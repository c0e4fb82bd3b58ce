"""Cells as JobSets for TPU slices of a GKE cluster, with Kueue's queue where there is one."""

from __future__ import annotations

import json
from collections.abc import Sequence

from moejax.config.knobs import ConfigError
from moejax.grid.launchers import Spec
from moejax.grid.launchers.jobset import VOLUME, hosts_and_chips, jobset
from moejax.grid.launchers.printed import Printer
from moejax.grid.launchers.remote import elsewhere, job_name
from moejax.sharding.topology import parse_topology


class Kubernetes(Printer):
    """Writes one List of JobSets, for `kubectl apply -f -`.

    Args:
      grid: the grid's name, for the names of the jobs.
      image: with the checkout and moejax[tpu].
      topology: of one slice, e.g. `v5e:4x4`; `slices`: of them for each cell.
      remote_root: the root as the pods see it: below `/volume`, where `volume` is mounted, or a
        bucket, `gs://...`.
      queue: Kueue's local queue, which decides how many cells run at a time.
      volume: a persistent volume claim.
      env: NAME=VALUE in every container.

    Raises:
      ConfigError: a part that is missing, or that GKE would refuse.
    """

    name = "kubernetes"

    def __init__(
        self,
        grid: str,
        *,
        image: str,
        topology: str,
        slices: int = 1,
        remote_root: str,
        queue: str = "",
        volume: str = "",
        env: Sequence[str] = (),
    ) -> None:
        for value, flag, example in (
            (image, "--image", "--image=us-docker.pkg.dev/PROJECT/REPOSITORY/moejax:1"),
            (topology, "--topology", "--topology=v5e:4x4"),
            (
                remote_root,
                "--remote-root",
                f"--remote-root={VOLUME}/routers or gs://BUCKET/routers",
            ),
        ):
            if not value:
                raise ConfigError(f"{flag}: --launcher=kubernetes needs it, e.g. {example}")
        if not remote_root.startswith("gs://") and not volume:
            raise ConfigError(
                f"--remote-root={remote_root}: a pod's own disk goes with the pod; give --volume="
                f"CLAIM and a root below {VOLUME}, or a bucket, e.g. gs://BUCKET/{grid}"
            )
        if volume and not (remote_root + "/").startswith((f"{VOLUME}/", "gs://")):
            raise ConfigError(
                f"--remote-root={remote_root}: is not on the volume; nearest valid value "
                f"{VOLUME}/{remote_root.strip('/')}"
            )
        self._grid = grid
        self._image = image
        self._topology = parse_topology(topology, slices)
        hosts_and_chips(self._topology)
        self._remote_root = remote_root
        self._queue = queue
        self._volume = volume
        self._env = tuple(env)

    def render(self, specs: Sequence[Spec]) -> str:
        manifests = [
            jobset(
                job_name(self._grid, spec.directory),
                self._image,
                self._topology,
                elsewhere(spec, self._remote_root),
                queue=self._queue,
                volume=self._volume,
                env=self._env,
            )
            for spec in specs
        ]
        for spec, manifest in zip(specs, manifests, strict=True):
            manifest["metadata"]["annotations"]["moejax/cell"] = spec.name
        return json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}, indent=2) + "\n"
