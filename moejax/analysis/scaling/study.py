"""One question to one data set: fits, other approaches, allocation, groups, and limits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from moejax.analysis import text
from moejax.analysis.scaling import determinacy
from moejax.analysis.scaling.additive import Chinchilla, Granularity, Joint, Power
from moejax.analysis.scaling.allocation import Allocation, allocate
from moejax.analysis.scaling.architectures import Comparison, baseline_of, compare
from moejax.analysis.scaling.envelope import Envelope, envelope
from moejax.analysis.scaling.fitting import Fit, fit
from moejax.analysis.scaling.isoflop import IsoFlop, bias, isoflop
from moejax.analysis.scaling.laws import Additive, Law
from moejax.analysis.scaling.points import Curve, Dataset, Points
from moejax.analysis.scaling.routed import Clark, Leverage
from moejax.analysis.scaling.search import Options
from moejax.config.knobs import ConfigError, nearest

LAWS: dict[str, Callable[[], Law]] = {
    "chinchilla": Chinchilla,
    "clark": Clark,
    "granularity": Granularity,
    "joint": Joint,
    "power": Power,
    "leverage": Leverage,
}


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked: a law, how to fit it, and whether groups are fitted apart.

    `budgets`: FLOPs for which N* and D* are wanted; none: those around the data.
    """

    law: Law
    options: Options = Options()
    by_group: bool = False
    baseline: str = ""
    budgets: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Approaches:
    """Exponents of C in N* and D* by other ways than approach 3 as asked for (chinchilla only).

    `isoflop_bias`: what approach 2 errs by in the exponent of N* on noise-free losses of the fitted
    law at these points. `other`: approach 3 with the other method. Without a fit NaN and None.
    """

    envelope: Envelope
    isoflop: IsoFlop
    isoflop_bias: float = math.nan
    other: Fit | None = None
    other_allocation: Allocation | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """The answer for one group, or for all points as one: a fit, or why there is none."""

    refused: str
    fit: Fit | None
    flags: tuple[str, ...]
    allocation: Allocation | None
    approaches: Approaches | None


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """The answer. `parts` by group, or one part called ""; `comparison` of groups if there are any.

    `remarks` say what the data as such can and cannot tell.
    """

    dataset: Dataset
    question: Question
    remarks: tuple[str, ...]
    parts: Mapping[str, Part]
    comparison: Comparison | None = None

    @property
    def refused(self) -> str:
        """Why nothing at all was fitted, in one line; "" if something was."""
        shared = self.comparison.shared if self.comparison is not None else None
        if shared is not None or any(part.fit is not None for part in self.parts.values()):
            return ""
        group, part = next(iter(self.parts.items()))
        return f"{group}: {part.refused}" if group else part.refused


def make_law(name: str, x: str = "c", pin: float | None = None) -> Law:
    """A law by name.

    Args:
      name: of `LAWS`.
      x: what a power law is in: c, n or d.
      pin: the irreducible loss, if it is given and not fitted.

    Raises:
      ConfigError: no such law or variable, or a law that has no irreducible loss.
    """
    if name not in LAWS:
        hint = nearest(name, tuple(LAWS)) or f"; there are {', '.join(LAWS)}"
        raise ConfigError(f"--law={text.clean(name)}: no such law{hint}")
    if x not in ("c", "n", "d"):
        raise ConfigError(f"--x={text.clean(x)}: must be c, n or d")
    if name != "power" and x != "c":
        raise ConfigError(
            f"--x={x}: only the power law has one variable; nearest valid: --law=power"
        )
    law = Power(x=x) if name == "power" else LAWS[name]()
    if pin is None:
        return law
    if not isinstance(law, Additive):
        raise ConfigError(f"--pin={pin:g}: the {name} law has no irreducible loss")
    if not 0 <= pin < 1e6:
        raise ConfigError(f"--pin={pin:g}: must be in [0, 1e6), nats per token")
    return dataclasses.replace(law, pinned=pin)


def study(dataset: Dataset, question: Question) -> Study:
    """Answers a question. Data that cannot answer is no error: `Study.refused` says why.

    Raises:
      ConfigError: the question does not fit the law or the data's groups.
    """
    # In one order, so that equal data draw equal random numbers.
    curves = sorted(dataset.curves, key=lambda c: (c.group, c.n, c.c_S[-1], c.loss_S[-1]))
    dataset = dataclasses.replace(dataset, points=dataset.points.ordered(), curves=tuple(curves))
    law, points, options = question.law, dataset.points, question.options
    remarks = (*determinacy.identifies(points), *_mixed(points, question))
    if not question.by_group:
        part = _part(question, points, dataset.curves, options)
        return Study(dataset, question, remarks, {"": part})
    if points.groups == ("",):
        raise ConfigError(
            "--by=group: the data name no groups; nearest valid: --columns=group=NAME of a CSV"
        )
    baseline = baseline_of(points, question.baseline)
    parts = {}
    for i, group in enumerate(points.groups):
        own_curves = [curve for curve in dataset.curves if curve.group == group]
        # Groups are different runs: their errors are drawn independently.
        seeded = dataclasses.replace(options, seed=options.seed + 1000 * (i + 1))
        parts[group] = _part(question, points.in_group(group), own_curves, seeded)
    own = {group: part.fit for group, part in parts.items() if part.fit is not None}
    comparison = compare(law, points, options, own, baseline)
    return Study(dataset, question, remarks, parts, comparison)


def _mixed(points: Points, question: Question) -> tuple[str, ...]:
    groups = points.groups
    if question.by_group or len(groups) < 2:
        return ()
    return (f"{len(groups)} groups in one fit: {'; '.join(groups)}; --by=group fits each alone",)


def _part(question: Question, points: Points, curves: Sequence[Curve], options: Options) -> Part:
    law = question.law
    why_not = determinacy.refusal(law, points)
    one = None if why_not else fit(law, points, options)
    allocation = None if one is None else allocate(one, question.budgets)
    approaches = None
    if isinstance(law, Chinchilla) and all(map(points.has, ("n", "d", "c"))):
        approaches = Approaches(
            envelope(curves, min(options.replicates, 200), options.seed), isoflop(points)
        )
        if one is not None and allocation is not None:
            method = "huber" if options.method == "vp" else "vp"
            other = fit(law, points, dataclasses.replace(options, method=method))
            approaches = dataclasses.replace(
                approaches,
                isoflop_bias=bias(points, one.predicted_I, allocation.n_exponent.value),
                other=other,
                other_allocation=allocate(other, question.budgets),
            )
    flags = () if one is None else determinacy.flags(one)
    return Part(why_not, one, flags, allocation, approaches)
