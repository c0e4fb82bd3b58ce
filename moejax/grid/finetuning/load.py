"""Load: a comparison by name or path, run as the user's own code."""

from __future__ import annotations

from moejax.config import ConfigError
from moejax.grid.finetuning.comparison import Comparison
from moejax.grid.load import call_in, run_file


def load_comparison(argument: str) -> Comparison:
    """The comparison of `FILE.py[:ARGUMENT]`, or of a name in configs/grids/ (`finetune`).

    The file has `get_comparison()` or `get_comparison(argument)` that returns a `Comparison`.

    Raises:
      ConfigError: no such file, no such function, or what is wrong with the comparison.
    """
    where, _, text = argument.partition(":")
    path, module = run_file(where)
    if not hasattr(module, "get_comparison"):
        raise ConfigError(
            f"{path}: has no get_comparison; nearest valid: --grid=finetune (a grid of runs from "
            "scratch is run by experiments.grid)"
        )
    found = call_in(module, "get_comparison", path, text)
    if not isinstance(found, Comparison):
        raise ConfigError(
            f"{path}: get_comparison returned {type(found).__name__}; nearest valid: "
            "moejax.grid.finetuning.Comparison(...)"
        )
    return found
