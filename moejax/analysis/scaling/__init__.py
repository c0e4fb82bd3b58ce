"""Scaling laws from run directories or a CSV: fits, intervals, and what the data cannot tell.

    from moejax.analysis.scaling import Options, Question, from_runs, make_law, study
    answer = study(from_runs(["runs/scaling_ladder"]), Question(make_law("power"), by_group=True))

`points` is the table, `additive` and `routed` are the laws, `fitting` fits one (`separable`,
`huber`, `descent`), `resampling` says how sure it is, `determinacy` what cannot be told; `isoflop`,
`envelope`, `allocation` and `architectures` draw consequences, `study` puts them together, `record`
and `table` show them. Axis letters: `descent`.
"""

from moejax.analysis.scaling.additive import Chinchilla, Granularity, Joint, Power
from moejax.analysis.scaling.allocation import Allocation, Optimum, allocate
from moejax.analysis.scaling.architectures import Comparison, compare, line_of
from moejax.analysis.scaling.csv_points import parse_columns, read_csv
from moejax.analysis.scaling.envelope import Envelope, envelope
from moejax.analysis.scaling.fitting import Estimate, Fit, fit
from moejax.analysis.scaling.isoflop import IsoFlop, isoflop
from moejax.analysis.scaling.laws import Law
from moejax.analysis.scaling.points import Curve, Dataset, Points, make_points
from moejax.analysis.scaling.record import record
from moejax.analysis.scaling.routed import Clark, Leverage
from moejax.analysis.scaling.run_points import from_runs
from moejax.analysis.scaling.search import Options
from moejax.analysis.scaling.shared import Shared
from moejax.analysis.scaling.study import LAWS, Question, Study, make_law, study
from moejax.analysis.scaling.table import page

__all__ = [
    "LAWS",
    "Allocation",
    "Chinchilla",
    "Clark",
    "Comparison",
    "Curve",
    "Dataset",
    "Envelope",
    "Estimate",
    "Fit",
    "Granularity",
    "IsoFlop",
    "Joint",
    "Law",
    "Leverage",
    "Optimum",
    "Options",
    "Points",
    "Power",
    "Question",
    "Shared",
    "Study",
    "allocate",
    "compare",
    "envelope",
    "fit",
    "from_runs",
    "isoflop",
    "line_of",
    "make_law",
    "make_points",
    "page",
    "parse_columns",
    "read_csv",
    "record",
    "study",
]
