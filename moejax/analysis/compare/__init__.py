"""Compares finished runs: at equal tokens, FLOPs or time, and by the cost of an equal loss.

    runs, _ = load_runs(find_runs(["runs/study"]))
    comparison = compare(runs, baseline="dense_seed0", at="flops")

`curves` reads losses between evaluations and never beyond them, `schedule` says where in its
learning-rate schedule a run then is, `treatments` takes runs together that differ in their seed
only, `screen` says who compares with whom, `readings` reads losses at a budget, `noise` and
`ratios` do the statistics, `equal_loss` says what a loss costs, `rungs` takes the lengths of a
ladder apart, `bands` gives figures their curves, `rows` makes JSON, CSV and Markdown.
The definitions, with an example: docs/comparing.md.
"""

from moejax.analysis.compare.bands import Band, band
from moejax.analysis.compare.comparison import Comparison, Row, Size, ToTarget, compare
from moejax.analysis.compare.curves import AXES, Curve, read_curve
from moejax.analysis.compare.equal_loss import EqualLoss, PowerLaw, equal_loss
from moejax.analysis.compare.noise import BEYOND, UNKNOWN, WITHIN, Difference, Noise, pooled
from moejax.analysis.compare.ratios import Ratio
from moejax.analysis.compare.readings import Reading
from moejax.analysis.compare.rows import (
    as_json,
    excluded_rows,
    markdown,
    reading_rows,
    table_rows,
)
from moejax.analysis.compare.rungs import rungs
from moejax.analysis.compare.screen import Exclusion, Selection, select
from moejax.analysis.compare.spikes import spike_score
from moejax.analysis.compare.treatments import Member, Treatment

__all__ = [
    "AXES",
    "BEYOND",
    "UNKNOWN",
    "WITHIN",
    "Band",
    "Comparison",
    "Curve",
    "Difference",
    "EqualLoss",
    "Exclusion",
    "Member",
    "Noise",
    "PowerLaw",
    "Ratio",
    "Reading",
    "Row",
    "Selection",
    "Size",
    "ToTarget",
    "Treatment",
    "as_json",
    "band",
    "compare",
    "equal_loss",
    "excluded_rows",
    "markdown",
    "pooled",
    "read_curve",
    "reading_rows",
    "rungs",
    "select",
    "spike_score",
    "table_rows",
]
