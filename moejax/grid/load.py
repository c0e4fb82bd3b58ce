"""Load: a grid file by name or path, run as the user's own code, into resolved cells."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from moejax.config import ConfigError, nearest
from moejax.grid.axes import Axes
from moejax.grid.cells import Grid, safe_name
from moejax.grid.hyper import Hyper
from moejax.grid.resolve import resolve
from moejax.grid.sweep import Sweep
from moejax.train.cli import import_components

SHIPPED = Path("configs/grids")


def load_grid(argument: str, imports: tuple[str, ...] = ()) -> Grid:
    """The grid of `FILE.py[:ARGUMENT]`, or of a name in configs/grids/ (`smoke`, `losses:x=1`).

    The file has `get_grid()` or `get_grid(argument)` that returns a `Sweep`; or, beside
    `get_config`, `get_hyper(hyper)`.

    Args:
      imports: `--import` of the command line, which the cells get as well.

    Raises:
      ConfigError: no such file, neither function, or what is wrong with the grid.
    """
    where, _, text = argument.partition(":")
    path, module = run_file(where)
    if hasattr(module, "get_grid"):
        sweep = call_in(module, "get_grid", path, text)
        if not isinstance(sweep, Sweep):
            raise ConfigError(
                f"{path}: get_grid returned {type(sweep).__name__}; nearest valid: "
                "moejax.grid.Sweep(...)"
            )
        import_components([one for one in sweep.imports if one not in imports])
    elif hasattr(module, "get_hyper") and hasattr(module, "get_config"):
        found = _guarded(path, "get_hyper", lambda: module.get_hyper(Hyper()))
        if not isinstance(found, Axes):
            raise ConfigError(
                f"{path}: get_hyper returned {type(found).__name__}; nearest valid: "
                "hyper.product([...])"
            )
        base = f"{path}:{text}" if text else str(path)
        sweep = Sweep(base.replace("{", "{{").replace("}", "}}"), found, seeds=())
    elif hasattr(module, "get_comparison"):
        raise ConfigError(
            f"{path}: compares fine-tunings; run it by python -m experiments.finetune_study "
            f"--grid={argument} --base=RUN"
        )
    else:
        raise ConfigError(f"{path}: has no get_grid (and no get_config with get_hyper)")
    return resolve(sweep, safe_name(path.stem), argument, imports)


def shipped_names(function: str = "get_grid") -> list[str]:
    """Names that `--grid` takes without a path, seen from the checkout: files with a function."""
    return sorted(
        path.stem
        for path in SHIPPED.glob("*.py")
        if path.stem != "__init__" and f"\ndef {function}(" in path.read_text()
    )


def run_file(where: str) -> tuple[Path, ModuleType]:
    """A file by path, or by its name among those that are shipped, and what it defines.

    Raises:
      ConfigError: no such file, or what its code raises.
    """
    path = _find(where)
    return path, _run(path)


def _find(where: str) -> Path:
    path = Path(where)
    if path.suffix != ".py":
        if "/" not in where and where != "__init__" and (SHIPPED / f"{where}.py").is_file():
            return SHIPPED / f"{where}.py"
        known = [*shipped_names(), *shipped_names("get_comparison")]
        hint = nearest(where, known) or (f"; shipped: {', '.join(known)}" if known else "")
        raise ConfigError(f"--grid={where}: no such grid{hint}")
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ConfigError(f"--grid={where}: no such file{nearest(path.name, siblings)}")
    return path


def _run(path: Path) -> ModuleType:
    name = f"moejax_grid_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses of the file look their module up
    loader = spec.loader
    _guarded(path, "the file", lambda: loader.exec_module(module))
    return module


def call_in(module: ModuleType, name: str, path: Path, text: str) -> Any:
    """What a function of a file returns, which may take the argument behind the file's name.

    Raises:
      ConfigError: it takes none, or what its code raises.
    """
    function = getattr(module, name)
    if inspect.signature(function).parameters:
        return _guarded(path, name, lambda: function(text or None))
    if text:
        raise ConfigError(f"{path}: {name} takes no argument, got {text!r}")
    return _guarded(path, name, function)


def _guarded(path: Path, what: str, call: Any) -> Any:
    """Calls the user's code; what it raises becomes one line with its place in the file."""
    try:
        return call()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame.lineno for frame in frames if Path(frame.filename).name == path.name]
        at = f"{path}:{own[-1]}" if own else str(path)
        raise ConfigError(f"{at}: {what}: {type(error).__name__}: {error}") from error
