"""Print what the evaluation sets are made of: packages, licences, documents, bytes.

usage:
  python -m tools.corpora [--set=SPEC ...]

examples:
  python -m tools.corpora
  python -m tools.corpora --set=languages --set='files:mine/*.jsonl?label=genre'

Without --set: every set that needs no argument; one whose package is absent says how to install it.
"""

from __future__ import annotations

import sys
import time

from absl import flags

from moejax.config import ConfigError
from moejax.data.evaluation import EVALUATIONS, open_evaluation
from moejax.train.cli import launch
from tools.prepare import table

_SETS = flags.DEFINE_multi_string("set", None, "The spec of an evaluation set; may be repeated.")
_HEADER = ("domain", "language", "source", "licence", "documents", "bytes", "sha256")


def describe(spec: str) -> str:
    """Returns the table of a set under a line with its spec and how long reading it took."""
    start = time.monotonic()
    rows = [
        (
            row["domain"],
            row["language"],
            " ".join(str(row[key]) for key in ("package", "file", "version") if row.get(key)),
            row["licence"],
            row["documents"],
            row["bytes"],
            row["sha256"][:12],
        )
        for row in open_evaluation(spec).sources()
    ]
    seconds = time.monotonic() - start
    return f"{spec}   (read in {seconds:.1f} s)\n{table(_HEADER, rows)}\n"


def main(argv: list[str]) -> None:
    """Prints the tables of the sets asked for, or of all that are installed."""
    del argv
    if _SETS.value:
        for spec in _SETS.value:
            print(describe(spec), flush=True)
        return
    for name in EVALUATIONS.names():
        if EVALUATIONS.get(name).argument_name:
            continue
        try:
            print(describe(name), flush=True)
        except ConfigError as error:
            print(f"{name}   {error}\n", file=sys.stderr, flush=True)


if __name__ == "__main__":
    launch(main)
