"""Print a Kubernetes JobSet that trains on TPU slices of a GKE cluster.

usage:
  python -m tools.launch.gke_jobset --name=NAME --image=IMAGE --topology=CHIP:SHAPE [--slices=N]
      [--queue=QUEUE] [--volume=CLAIM] [--restarts=N] [--env=NAME=VALUE ...]
      -- --config=FILE[:ARGUMENTS] --workdir=DIR [--config.KEY=VALUE ...]

example:
  python -m tools.launch.gke_jobset --name=p --image=$IMAGE --topology=v5p:4x4x4 --slices=2 \\
      --volume=runs -- --config=configs/lm.py:moe=top_p --workdir=/volume/p | kubectl apply -f -

What stands after -- are flags of experiments.train. The image's working directory is the checkout,
with moejax[tpu] installed (tools/launch/Dockerfile). See docs/cluster.md.
"""

from __future__ import annotations

import json
import sys

from absl import flags

from moejax.config import ConfigError
from moejax.grid.launchers.jobset import VOLUME, jobset
from moejax.sharding.topology import parse_topology
from moejax.train.cli import launch

_NAME = flags.DEFINE_string("name", "", "Of the JobSet.")
_IMAGE = flags.DEFINE_string("image", "", "Container image with the checkout and moejax[tpu].")
_TOPOLOGY = flags.DEFINE_string("topology", "", "CHIP:SHAPE of one slice, e.g. v5p:4x4x4.")
_SLICES = flags.DEFINE_integer("slices", 1, "How many slices.")
_QUEUE = flags.DEFINE_string("queue", "", "Kueue's local queue, where the cluster has one.")
_VOLUME = flags.DEFINE_string("volume", "", f"Persistent volume claim, mounted at {VOLUME}.")
_RESTARTS = flags.DEFINE_integer("restarts", 10, "How often all processes may start again.")
_ENV = flags.DEFINE_multi_string("env", [], "NAME=VALUE in every container; may be repeated.")
_train: list[str] = []


def main(argv: list[str]) -> None:
    """Prints the manifest that the flags ask for; JSON is YAML."""
    del argv
    for value, flag, example in (
        (_NAME.value, "--name", "--name=moe"),
        (_IMAGE.value, "--image", "--image=us-docker.pkg.dev/PROJECT/REPOSITORY/moejax:1"),
        (_TOPOLOGY.value, "--topology", "--topology=v5p:4x4x4"),
        (_train, "--", "-- --config=configs/lm.py:moe=top_p --workdir=DIR"),
    ):
        if not value:
            raise ConfigError(f"{flag}: is required, e.g. {example}")
    manifest = jobset(
        _NAME.value,
        _IMAGE.value,
        parse_topology(_TOPOLOGY.value, _SLICES.value),
        _train,
        queue=_QUEUE.value,
        volume=_VOLUME.value,
        restarts=_RESTARTS.value,
        env=_ENV.value,
    )
    print(json.dumps(manifest, indent=2))


if __name__ == "__main__":
    if "--" in sys.argv:  # absl would take what follows for its own arguments
        cut = sys.argv.index("--")
        _train += sys.argv[cut + 1 :]
        del sys.argv[cut:]
    launch(main)
