"""Compares runs: reads run directories and nothing else, writes one report.

    python -m tools.evaluate runs/dense runs/top_p --out=runs/report
    python -m tools.evaluate runs/quickstart --out=runs/quickstart

A directory that holds runs stands for all of them; so does the root of a grid, whose cells without
a run are named. Finished runs that differ in their seed only are also shown as means. The report
is DIR/report.html (one file, works without network), DIR/report.json, DIR/data/*.csv,
DIR/tables/*.md and *.tex, DIR/figures/*.png and *.pdf. Drawing these pictures is most of the time:
--pictures=false leaves them out. JAX is not imported, so it also runs on a laptop without it. Exit
codes: 0 written, 2 wrong arguments.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import app, flags

from moejax.analysis.report import write_report
from moejax.config.knobs import ConfigError

_OUT = flags.DEFINE_string("out", None, "Directory that the report is written to.")
_PICTURES = flags.DEFINE_bool("pictures", True, "Also draw every chart as PNG and PDF.")
_QUIET = flags.DEFINE_bool("quiet", False, "Print nothing but the report's path.")


def main(argv: Sequence[str]) -> None:
    """Writes the report of the run directories in `argv[1:]`."""
    try:
        if not _OUT.value:
            raise ConfigError("--out is missing: python -m tools.evaluate RUN_DIR... --out=DIR")
        path = write_report(argv[1:], _OUT.value, _say, pictures=_PICTURES.value)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(path)


def _say(line: str) -> None:
    if not _QUIET.value:
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    app.run(main)
