"""The launcher that `--launcher` and its flags ask for."""

from __future__ import annotations

from moejax.config.knobs import ConfigError, nearest
from moejax.grid.arguments import Arguments
from moejax.grid.launchers import Launcher
from moejax.grid.launchers.kubernetes import Kubernetes
from moejax.grid.launchers.local import Local
from moejax.grid.launchers.printed import Printer
from moejax.grid.launchers.slurm import Slurm
from moejax.grid.launchers.tpu import QueuedResources
from moejax.grid.places import Places

FLAGS = {
    "local": {"max_parallel", "timeout", "accelerators"},
    "slurm": {"max_parallel", "timeout", "slurm", "wait"},
    "kubernetes": {"image", "topology", "slices", "remote_root", "queue", "volume", "env"},
    "tpu": {"topology", "slices", "remote_root", "zone"},
    "print": set[str](),
}
"""Flags that a launcher understands, of those that not every one does."""


def choose(arguments: Arguments, places: Places, grid: str) -> Launcher | Printer:
    """Makes the launcher or printer; `grid` is the grid's name.

    Raises:
      ConfigError: an unknown launcher, a flag that it does not know, or one that it needs.
    """
    name = arguments.launcher
    if name not in FLAGS:
        hint = nearest(name, FLAGS) or f"; known: {', '.join(FLAGS)}"
        raise ConfigError(f"--launcher={name}: unknown launcher{hint}")
    default = Arguments()
    for flag in sorted(set().union(*FLAGS.values()) - FLAGS[name]):
        if getattr(arguments, flag) != getattr(default, flag):
            users = ", ".join(one for one, flags in FLAGS.items() if flag in flags)
            shown = "nowait" if flag == "wait" else flag.replace("_", "-")
            raise ConfigError(f"--{shown}: means nothing to --launcher={name}; it is for {users}")
    if name == "local":
        return Local(
            places,
            parallel=arguments.max_parallel,
            accelerators=arguments.accelerators,
            timeout=arguments.timeout,
        )
    if name == "slurm":
        return Slurm(
            places,
            parallel=arguments.max_parallel,
            options=arguments.slurm,
            timeout=arguments.timeout,
        )
    given = {flag: getattr(arguments, flag) for flag in FLAGS[name]}
    if name == "kubernetes":
        return Kubernetes(grid, **given)
    if name == "tpu":
        return QueuedResources(grid, **given)
    return Printer()
