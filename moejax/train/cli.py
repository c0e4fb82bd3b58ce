"""What the programs in `experiments/` share: flags, one-line errors, exit codes, user components.

Mistakes of the caller print one line on stderr and exit with 2; a run that ended early prints one
line and exits with its own code (`errors.py`); a bug keeps its traceback and exits with 1.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from ml_collections.config_flags import config_flags

from moejax.config.flags import explain_file, explain_override
from moejax.config.knobs import ConfigError, nearest
from moejax.sharding.cpu import give_threads
from moejax.sharding.roll_call import MissingProcessError
from moejax.train.errors import EXIT_PROCESSES, EXIT_SIGINT, EXIT_USAGE, LostProcessError, RunError

_HELP = ("--help", "-help", "-h", "--helpshort")


def launch(main: Callable[[list[str]], None]) -> NoReturn:
    """Runs an absl `main` with the conventions above. Replaces `absl.app.run`."""

    def guarded(argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # orbax tells its life story at INFO
        try:
            if len(argv) > 1:
                raise ConfigError(f"{argv[1]}: unexpected argument; flags are --name=value")
            give_threads()
            main(argv)
        except ConfigError as error:
            _end(f"error: {error}", EXIT_USAGE)
        except MissingProcessError as error:
            _end(f"error: {error}", EXIT_PROCESSES)
        except LostProcessError as error:
            print(f"{error.state}: {error}", file=sys.stderr, flush=True)
            os._exit(error.exit_code)  # JAX's own exit would wait for the lost process
        except RunError as error:
            _end(f"{error.state}: {error}", error.exit_code)
        except KeyboardInterrupt:  # before the run took over the signals: nothing to save yet
            _end("interrupted: SIGINT before training began; nothing to save", EXIT_SIGINT)

    app.run(guarded, flags_parser=parse_flags)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses flags; every mistake is one line and exit code 2. `--help` prints to stdout."""
    arguments = list(argv)
    if any(argument in _HELP for argument in arguments[1:]):
        print(usage())
        sys.exit(0)
    try:
        import_components(_values_of("import", arguments))
        names = [name for name in flags.FLAGS if config_flags.is_config_flag(flags.FLAGS[name])]
        for name in names:
            _refuse(explain_file(name, arguments))
        try:
            return list(flags.FLAGS(arguments))
        except (flags.Error, AttributeError, LookupError, TypeError, ValueError) as error:
            _refuse(_config_error(error))
            for name in names:
                _refuse(explain_override(name, arguments))
            if isinstance(error, flags.Error):
                raise ConfigError(_flag_error(error)) from error
            raise
    except ConfigError as error:
        _end(f"error: {error}", EXIT_USAGE)


SHARED = "moejax.train.process_flags"
"""Defines the flags of programs that several processes may run together."""


def usage() -> str:
    """The program's docstring, its own flags, and those of several processes where it has them."""
    main = sys.modules["__main__"]
    rows = flags.FLAGS.flags_by_module_dict().get(sys.argv[0], [])
    rows = rows or flags.FLAGS.get_flags_for_module(main)
    rows = [*rows, *flags.FLAGS.get_flags_for_module(SHARED)]
    lines = [f"  --{flag.name}: {' '.join(flag.help.split())}" for flag in rows]
    return "\n".join([(main.__doc__ or "").strip(), "", "flags:", *lines])


def import_components(names: Sequence[str]) -> None:
    """Imports the user's own files or modules, which register routers and the like.

    Raises:
      ConfigError: no such file or module, or it fails to import.
    """
    for name in names:
        try:
            if name.endswith(".py"):
                _import_file(Path(name))
            else:
                importlib.import_module(name)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"--import={name}: {type(error).__name__}: {error}") from error


def enable_compile_cache(directory: Path) -> None:
    """Keeps compiled programs on disk, unless the user has chosen a place for them.

    Raises:
      ConfigError: the cache directory cannot be made or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ConfigError(
            f"{directory}: cannot keep compiled programs there ({error.strerror}); choose another "
            "cache with --config.data.cache_dir=DIR or MOEJAX_CACHE=DIR"
        ) from error
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _import_file(path: Path) -> None:
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ConfigError(f"--import={path}: no such file{nearest(path.name, siblings)}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--import={path}: is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)


def _values_of(flag: str, argv: Sequence[str]) -> list[str]:
    """Values of a repeated flag, read before the others because configs may need its effect."""
    values = []
    for index, argument in enumerate(argv):
        if argument == f"--{flag}" and index + 1 < len(argv):
            values.append(argv[index + 1])
        elif argument.startswith(f"--{flag}="):
            values.append(argument.partition("=")[2])
    return values


def _config_error(error: BaseException | None) -> str:
    """The ConfigError behind an exception, if one of its causes is one."""
    while error is not None:
        if isinstance(error, ConfigError):
            return str(error)
        error = error.__cause__ or error.__context__
    return ""


def _flag_error(error: Any) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines and len(lines) < 4 else lines[-1]


def _refuse(problem: str) -> None:
    if problem:
        raise ConfigError(problem)


def _end(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr, flush=True)
    sys.exit(code)
