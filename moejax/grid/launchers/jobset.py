"""The manifest of a JobSet: one Job for each TPU slice, one pod with one process for each host."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from moejax.config import ConfigError
from moejax.sharding.topology import Topology
from moejax.train.errors import EXIT_NON_FINITE, EXIT_USAGE

# cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus; the same in xpk 1.16.
ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
CHIPS_PER_HOST = 4
"""Of the machine types ct4p-, ct5lp- and ct5p-hightpu-4t and ct6e-standard-4t."""
GRACE_SECONDS = 300
"""From SIGTERM to SIGKILL: for the step that runs, and a checkpoint."""
PORTS = (8471, 8080)
"""Between the hosts of a slice, and between slices."""
VOLUME = "/volume"
"""Where a claim is mounted."""


def hosts_and_chips(topology: Topology) -> tuple[int, int]:
    """Hosts of one slice, and chips of each.

    Raises:
      ConfigError: GKE has no such slice.
    """
    if topology.chip not in ACCELERATORS:
        raise ConfigError(
            f"--topology={topology.name}: is no TPU; known: {', '.join(ACCELERATORS)}"
        )
    chips = math.prod(topology.shape)
    if chips == 1 and topology.figures.torus == 3:
        raise ConfigError(
            f"--topology={topology.name}: is a part of a host; nearest valid value "
            f"{topology.chip}:2x2x1"
        )
    hosts = max(1, chips // CHIPS_PER_HOST)
    if topology.slices > 1 and hosts == 1:
        raise ConfigError(
            f"--slices={topology.slices}: slices of one host cannot be joined; nearest valid "
            "value 1"
        )
    return hosts, min(chips, CHIPS_PER_HOST)


def jobset(
    name: str,
    image: str,
    topology: Topology,
    train: Sequence[str],
    *,
    queue: str = "",
    volume: str = "",
    restarts: int = 10,
    env: Sequence[str] = (),
) -> dict[str, Any]:
    """The manifest, as data.

    Args:
      train: flags of experiments.train.
      queue: Kueue's local queue; empty: none.
      volume: a persistent volume claim, mounted at `VOLUME`; empty: none.
      restarts: how often all processes may start again.
      env: NAME=VALUE.

    Raises:
      ConfigError: a value that Kubernetes or GKE would refuse.
    """
    hosts, chips = hosts_and_chips(topology)
    # Pods are called NAME-slice-I-J-xxxxx, in at most 63 characters.
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
        raise ConfigError(
            f"--name={name}: expected up to 40 of a-z, 0-9 and -, the first a letter, the last "
            "not -"
        )
    if restarts < 0:
        raise ConfigError(f"--restarts={restarts}: nearest valid value 0")
    for pair in env:
        if not re.match(r"[A-Za-z_]\w*=", pair):
            raise ConfigError(f"--env={pair}: expected NAME=VALUE")
    command = ["python", "-m", "experiments.train", *train]
    container: dict[str, Any] = {
        "name": "train",
        "image": image,
        # Without a shell SIGTERM reaches python. Kubernetes would replace $(NAME).
        "command": [word.replace("$(", "$$(") for word in command],
        "env": [dict(zip(("name", "value"), pair.split("=", 1), strict=True)) for pair in env],
        "ports": [{"containerPort": port} for port in PORTS],
        "resources": {"limits": {"google.com/tpu": chips}},
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "hostNetwork": True,  # the hosts' own, which is faster between slices
        "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": ACCELERATORS[topology.chip],
            "cloud.google.com/gke-tpu-topology": "x".join(map(str, topology.shape)),
        },
        "containers": [container],
    }
    if volume:
        container["volumeMounts"] = [{"name": "volume", "mountPath": VOLUME}]
        pod["volumes"] = [{"name": "volume", "persistentVolumeClaim": {"claimName": volume}}]
    # Wrong use, or a loss that is not finite: again would end the same way.
    hopeless = {
        "containerName": "train",
        "operator": "In",
        "values": [EXIT_USAGE, EXIT_NON_FINITE],
    }
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # none can go on without the others
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": hopeless}]},
        "template": {"spec": pod},
    }
    give_up = {
        "name": "give_up",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            "labels": {"kueue.x-k8s.io/queue-name": queue} if queue else {},
            # One Job on one node pool, which is one slice.
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "failurePolicy": {"maxRestarts": restarts, "rules": [give_up]},
            "replicatedJobs": [
                {"name": "slice", "replicas": topology.slices, "template": {"spec": job}}
            ],
        },
    }
