"""Laws that are linear in logarithms: Clark's for routed models, and efficiency leverage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np

from moejax.analysis.scaling.descent import Floats
from moejax.analysis.scaling.laws import LogLinear
from moejax.analysis.scaling.points import Points
from moejax.analysis.scaling.saturation import END, START, saturation, to_search
from moejax.analysis.scaling.separable import Design

_LN10 = np.log(10.0)


def _saturation_grid(start: Floats, end: Floats) -> Floats:
    return np.stack(np.meshgrid(start, end, indexing="ij"), -1).reshape(-1, 2)


@dataclasses.dataclass(frozen=True)
class Clark(LogLinear):
    """log10 L = a log10 N + b log10 Ehat + c log10 N log10 Ehat + d (Clark et al. 2022).

    N is the number of parameters of the dense model, E that of experts, at one number of tokens;
    1 / Ehat = 1 / (E - 1 + (1 / E_start - 1 / E_max)^-1) + 1 / E_max.
    """

    name = "clark"
    version = 1
    formula = "log10 L = a log10 N + b log10 Ehat + c log10 N log10 Ehat + d"
    needs: ClassVar[Mapping[str, int]] = {"n": 2, "e": 4}
    coefficients = ("a", "b", "c", "d")
    exponents = (START, END)
    low_P = np.array([np.log(0.05), 0.01])
    high_P = np.array([np.log(200.0), 25.0])

    def design(self, points: Points) -> Callable[[Floats], Design]:
        n_I = np.log10(points.n_I)

        def at(exponent_RP: Floats) -> Design:
            u_RI, du_RIP = saturation(points.e_I - 1, exponent_RP)
            one_RI = np.ones_like(u_RI)
            phi_RIQ = np.stack([one_RI * n_I, u_RI / _LN10, n_I * u_RI / _LN10, one_RI], -1)
            dphi_RIQP = np.zeros((*phi_RIQ.shape, 2))
            dphi_RIQP[:, :, 1] = du_RIP / _LN10
            dphi_RIQP[:, :, 2] = n_I[:, None] * du_RIP / _LN10
            return Design(phi_RIQ, dphi_RIQP, np.zeros((len(u_RI), 4)))

        return at

    def starts(self, points: Points) -> Floats:
        return _saturation_grid(np.log(np.geomspace(0.5, 20, 6)), np.geomspace(0.5, 12, 6))

    def constants(self, coefficient_RQ: Floats, exponent_RP: Floats) -> dict[str, Floats]:
        found = dict(zip(self.coefficients, coefficient_RQ.T, strict=True))
        found["E_start"] = np.exp(exponent_RP[:, 0])
        found["E_max"] = np.exp(exponent_RP.sum(1))
        return found

    def search(self, constants: Mapping[str, float]) -> tuple[Floats, Floats]:
        return super().search(to_search(constants, "E_start", "E_max"))


@dataclasses.dataclass(frozen=True)
class Leverage(LogLinear):
    """EL = Ahat^(a + d log10 C + gamma (log2 G)^2 + beta log2 G) (Ling, arXiv 2507.17702).

    EL is C_dense / C_moe at equal loss, A the activation ratio, G = 2 d_model / d_expert. Ahat
    saturates from A_start to A_max. The bases of the logarithms are those that reproduce the
    published claims.
    """

    name = "leverage"
    version = 1
    formula = "EL = Ahat^(a + d log10 C + gamma (log2 G)^2 + beta log2 G)"
    needs: ClassVar[Mapping[str, int]] = {"a": 3, "g": 3, "c": 2}
    response = "leverage"
    coefficients = ("a", "d", "gamma", "beta")
    exponents = (START, END)
    low_P = np.array([np.log(1e-6), 0.01])
    high_P = np.array([0.0, 60.0])

    def design(self, points: Points) -> Callable[[Floats], Design]:
        c_I, g_I = np.log10(points.c_I), np.log2(points.g_I)
        factor_IQ = np.stack([np.ones_like(c_I), c_I, g_I**2, g_I], -1)

        def at(exponent_RP: Floats) -> Design:
            u_RI, du_RIP = saturation(points.a_I, exponent_RP)
            phi_RIQ = u_RI[:, :, None] * factor_IQ / _LN10
            dphi_RIQP = du_RIP[:, :, None, :] * factor_IQ[:, :, None] / _LN10
            return Design(phi_RIQ, dphi_RIQP, np.zeros((len(u_RI), 4)))

        return at

    def starts(self, points: Points) -> Floats:
        return _saturation_grid(np.log(np.geomspace(1e-4, 0.2, 6)), np.geomspace(2, 40, 6))

    def constants(self, coefficient_RQ: Floats, exponent_RP: Floats) -> dict[str, Floats]:
        found = dict(zip(self.coefficients, coefficient_RQ.T, strict=True))
        found["A_start"] = np.exp(exponent_RP[:, 0])
        found["A_max"] = np.exp(exponent_RP.sum(1))
        return found

    def search(self, constants: Mapping[str, float]) -> tuple[Floats, Floats]:
        return super().search(to_search(constants, "A_start", "A_max"))
