"""A study as JSON: constants, intervals, and everything it takes to know what they are."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

import moejax
from moejax.analysis import text
from moejax.analysis.scaling.allocation import Allocation
from moejax.analysis.scaling.architectures import Comparison
from moejax.analysis.scaling.determinacy import ray
from moejax.analysis.scaling.fitting import Estimate, Fit
from moejax.analysis.scaling.laws import Additive
from moejax.analysis.scaling.points import COLUMNS, Dataset
from moejax.analysis.scaling.study import Approaches, Part, Study

FORMAT_VERSION = 1


def record(study: Study) -> dict[str, Any]:
    """The study as plain JSON values, equal for equal data and options; NaN is null.

    Paths and the time are left out. `data.sha256` is `Points.digest`: of the numbers, groups, cells
    and seeds that were fitted.
    """
    question = study.question
    law = question.law
    found: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "versions": {"moejax": moejax.__version__, "numpy": np.__version__},
        "law": {
            "name": law.name,
            "version": law.version,
            "formula": law.formula,
            "pinned": law.pinned if isinstance(law, Additive) else None,
        },
        "options": dataclasses.asdict(question.options) | {"by_group": question.by_group},
        "data": _data(study.dataset),
        "refused": study.refused,
        "remarks": list(study.remarks),
    }
    if question.by_group:
        found["groups"] = {group: _part(part) for group, part in study.parts.items()}
    else:
        found |= _part(study.parts[""])
    if study.comparison is not None:
        found["comparison"] = _comparison(study.comparison)
    return found


def _part(part: Part) -> dict[str, Any]:
    found: dict[str, Any] = {"refused": part.refused}
    if part.fit is not None:
        found["fit"] = _fit(part.fit) | {"flags": list(part.flags)}
        found["allocation"] = _allocation(part.allocation)
    if part.approaches is not None:
        found["approaches"] = _approaches(part.approaches)
    return found


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _numbers(values: object) -> list[float | None]:
    return [_number(float(v)) for v in np.asarray(values, np.float64)]


def _estimate(one: Estimate) -> dict[str, float | None]:
    return {"value": _number(one.value), "low": _number(one.low), "high": _number(one.high)}


def _data(dataset: Dataset) -> dict[str, Any]:
    points = dataset.points
    line = ray(points)
    ranges = {
        name: _numbers([np.nanmin(points.column(name)), np.nanmax(points.column(name))])
        for name in COLUMNS
        if np.isfinite(points.column(name)).any()
    }
    return {
        "sha256": points.digest(),
        "runs": len(points),
        "cells": len(points.cells),
        "groups": list(points.groups),
        "n_is": dataset.n_is,
        "c_is": dataset.c_is,
        "ranges": ranges,
        "off_ray_decades": None if line is None else _number(line.decades),
        "notes": list(dataset.notes),
        "excluded": [[text.clean(name, 120), text.clean(why)] for name, why in dataset.excluded],
    }


def _fit(one: Fit) -> dict[str, Any]:
    points = one.points
    order = np.lexsort((np.array(points.run_I), points.column(one.law.response)))
    return {
        "constants": {name: _estimate(value) for name, value in one.estimates.items()},
        "method": one.options.method,
        "objective": _number(one.objective),
        "rmse_log": _number(one.rmse),
        "condition": _number(one.condition),
        "condition_searched": _number(one.condition_searched),
        "starts": {"run": one.starts, "reached_optimum": one.reached},
        "clusters": one.clusters,
        "parameters_in_use": one.rank,
        "degrees_of_freedom": one.freedom,
        "replicates": len(one.exponent_RP),
        "why_no_interval": one.why_no_interval,
        "held_out": {
            "column": one.held.column,
            "runs": list(one.held.run_I),
            "relative_error": _numbers(one.held.error_I),
            "why_not": one.held.why_not,
        },
        "residuals": [
            {
                "run": points.run_I[i],
                "group": points.group_I[i],
                "measured": _number(points.column(one.law.response)[i]),
                "predicted": _number(one.predicted_I[i]),
                "log_residual": _number(one.residual_I[i]),
            }
            for i in order
        ],
    }


def _allocation(one: Allocation | None) -> dict[str, Any] | None:
    if one is None:
        return None
    return {
        "flops_per_token": {
            "factor": _number(one.compute.factor),
            "power_of_n": _number(one.compute.power),
            "worst_relative_error": _number(one.compute.worst),
        },
        "e": _number(one.e),
        "g": _number(one.g),
        "n_exponent": _estimate(one.n_exponent),
        "d_exponent": _estimate(one.d_exponent),
        "optima": [
            {
                "flops": _number(best.budget),
                "beyond_data": _number(best.beyond),
                "n": _estimate(best.n),
                "d": _estimate(best.d),
                "loss": _estimate(best.loss),
            }
            for best in one.optima
        ],
    }


def _approaches(one: Approaches) -> dict[str, Any]:
    return {
        "1": {
            "n_exponent": _estimate(one.envelope.n_exponent),
            "d_exponent": _estimate(one.envelope.d_exponent),
            "sizes_on_envelope": one.envelope.sizes,
            "why_not": one.envelope.why_not,
        },
        "2": {
            "n_exponent": _estimate(one.isoflop.n_exponent),
            "d_exponent": _estimate(one.isoflop.d_exponent),
            "bias_of_n_exponent": _number(one.isoflop_bias),
            "minima": [
                {
                    "flops": _number(valley.budget),
                    "runs": len(valley.rows),
                    "n": _number(valley.n),
                    "d": _number(valley.d),
                    "loss": _number(valley.loss),
                    "why_not": valley.why_not,
                }
                for valley in one.isoflop.valleys
            ],
            "why_not": one.isoflop.why_not,
        },
        "3": None
        if one.other is None
        else _fit(one.other) | {"allocation": _allocation(one.other_allocation)},
    }


def _comparison(groups: Comparison) -> dict[str, Any]:
    return {
        "baseline": groups.baseline,
        "shared": None
        if groups.shared is None
        else _fit(groups.shared) | {"flags": list(groups.shared_flags)},
        "why_not_shared": groups.why_not_shared,
        "pinned": [
            {
                "floor": _number(pin.floor),
                "exponents": {
                    name: {group: _number(value) for group, value in by_group.items()}
                    for name, by_group in pin.exponents.items()
                },
                "rmse_log": _number(pin.rmse),
            }
            for pin in groups.pins
        ],
        "differences": [
            {
                "group": one.group,
                "baseline": one.baseline,
                "name": one.name,
                "floor": one.floor,
                "difference": _estimate(one.estimate),
                "verdict": one.verdict,
            }
            for one in groups.differences
        ],
        "leverage": [
            {
                "group": one.group,
                "baseline": one.baseline,
                "floor": one.floor,
                "flops": _number(one.c),
                "loss": _number(one.loss),
                "leverage": _estimate(one.estimate),
                "inside_data": one.inside,
            }
            for one in groups.leverage
        ],
    }
