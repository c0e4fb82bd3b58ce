"""Interventions: what a trained model costs when its experts are taken away, added or exchanged.

`write_sweeps` runs one of `KINDS` over a text at all its values and writes what each costs
(docs/interventions.md).
"""

from moejax.probe.interventions.edit import WHENS, Edit
from moejax.probe.interventions.kinds import KINDS, parse_values
from moejax.probe.interventions.plan import Intervention, Point, make_edits, points
from moejax.probe.interventions.program import make_losses
from moejax.probe.interventions.sweep import Evaluator, sweep, write_sweeps

__all__ = [
    "KINDS",
    "WHENS",
    "Edit",
    "Evaluator",
    "Intervention",
    "Point",
    "make_edits",
    "make_losses",
    "parse_values",
    "points",
    "sweep",
    "write_sweeps",
]
