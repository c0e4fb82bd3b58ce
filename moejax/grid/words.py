"""Words of the command line: the command, what it is about, and flags as absl takes them."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from moejax.config import ConfigError, nearest

_CELLS = {"root", "filter", "json"}
_START = {
    "grid", "import", "shard", "fail_fast", "keep_going", "every", "launcher", "max_parallel",
    "timeout", "accelerators", "slurm", "wait", "image", "topology", "slices", "queue", "volume",
    "env", "zone", "remote_root",
}  # fmt: skip
_COMPARE = {"by", "group", "agg"}
COMMANDS = {
    "plan": _CELLS | {"grid", "import", "shard", "chip", "limit"},
    "run": _CELLS | _START | {"retry_failed", "rerun"},
    "status": _CELLS | {"shard", "watch"},
    "diff": {"root", "json"},
    "best": _CELLS | _COMPARE,
    "table": _CELLS | _COMPARE | {"format"},
    "retry": _CELLS | _START,
}
"""The flags that each command understands; those of `run` that only some launchers do are in
`launchers/choose.py`."""


def split_words(
    argv: Sequence[str], known: flags.FlagValues
) -> tuple[str, tuple[str, ...], list[str]]:
    """(command, its words, argv for absl). Flags may have hyphens, and a space for the `=`.

    Args:
      argv: as in sys.argv.
      known: the flags that are defined, to tell `--json best` from `--by eval/loss`.

    Raises:
      ConfigError: an unknown command, more or fewer words than it takes, or another's flag.
    """
    words, rest, used = [], [argv[0]], []
    given = iter(argv[1:])
    for word in given:
        if not word.startswith("-"):
            words.append(word)
            continue
        name, equals, value = word.partition("=")
        name = name.lstrip("-").replace("-", "_")
        if name in known and not known[name].boolean and not equals:
            equals, value = "=", next(given, "")
        used.append(name if name in known else name.removeprefix("no"))
        rest.append(f"--{name}{equals}{value}")
    command = words.pop(0) if words else "plan"
    if command not in COMMANDS:
        hint = nearest(command, COMMANDS) or f"; known: {', '.join(COMMANDS)}"
        raise ConfigError(f"{command}: unknown command{hint}")
    wanted = 2 if command == "diff" else 0
    if len(words) != wanted:
        said = f"got {len(words)}" if len(words) <= wanted else f"{words[wanted]!r} is one too many"
        raise ConfigError(f"{command}: takes {wanted} words besides flags, {said}")
    everywhere = set().union(*COMMANDS.values())
    for name in used:
        if name in everywhere and name not in COMMANDS[command]:
            users = ", ".join(one for one, names in COMMANDS.items() if name in names)
            raise ConfigError(f"--{name}: means nothing to {command}; it is for {users}")
    return command, tuple(words), rest
