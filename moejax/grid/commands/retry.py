"""`grid retry`: `run` for the cells that failed, which go on from their checkpoints."""

from __future__ import annotations

from moejax.grid.arguments import Arguments
from moejax.grid.commands.run import run
from moejax.grid.driver import Policy


def main(arguments: Arguments) -> int:
    """Runs the failed cells among the selected ones; returns one of the codes of `exits`."""
    return run(
        arguments,
        Policy(missing=False, failed=True, fail_fast=arguments.fail_fast, wait=arguments.wait),
    )
