"""Laws that add a constant and powers: in one variable, Chinchilla's, granularity, (N, E, D)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from moejax.analysis.scaling.descent import Floats
from moejax.analysis.scaling.laws import Additive, Slice, log_grid
from moejax.analysis.scaling.points import Points
from moejax.analysis.scaling.saturation import END, START, saturation, to_search

_LOW, _HIGH = 0.005, 3.0


def _logs(points: Points, *names: str) -> list[Floats]:
    return [np.log(points.column(name)) for name in names]


@dataclasses.dataclass(frozen=True)
class Power(Additive):
    """L = L_inf + A x^-alpha, x being C, N or D (Kaplan et al. 2020; Hestness et al. 2017)."""

    x: str = "c"

    name = "power"
    version = 1
    exponents = ("alpha",)
    every_coefficient = ("L_inf", "A")
    low_P, high_P = np.array([_LOW]), np.array([_HIGH])

    @property
    def formula(self) -> str:
        return f"L = L_inf + A {self.x.upper()}^-alpha"

    @property
    def needs(self) -> dict[str, int]:
        return {self.x: 2 if self.pinned is not None else 3}

    def powers(self, exponent_RP: Floats, points: Points) -> tuple[Floats, Floats]:
        (x_I,) = _logs(points, self.x)
        log_RIQ = (-exponent_RP * x_I)[:, :, None]
        return log_RIQ, np.broadcast_to(-x_I[None, :, None, None], (*log_RIQ.shape, 1))

    def starts(self, points: Points) -> Floats:
        return log_grid(0.02, 2.0, 24, 1)


@dataclasses.dataclass(frozen=True)
class Chinchilla(Additive):
    """L = E + A N^-alpha + B D^-beta (Hoffmann et al. 2022, eq. 2)."""

    name = "chinchilla"
    version = 1
    formula = "L = E + A N^-alpha + B D^-beta"
    needs: ClassVar[Mapping[str, int]] = {"n": 3, "d": 3}
    exponents = ("alpha", "beta")
    every_coefficient = ("E", "A", "B")
    low_P, high_P = np.full(2, _LOW), np.full(2, _HIGH)

    def powers(self, exponent_RP: Floats, points: Points) -> tuple[Floats, Floats]:
        n_I, d_I = _logs(points, "n", "d")
        log_RIQ = -np.stack([exponent_RP[:, :1] * n_I, exponent_RP[:, 1:] * d_I], -1)
        dlog_RIQP = np.zeros((*log_RIQ.shape, 2))
        dlog_RIQP[:, :, 0, 0] = -n_I
        dlog_RIQP[:, :, 1, 1] = -d_I
        return log_RIQ, dlog_RIQP

    def starts(self, points: Points) -> Floats:
        return log_grid(0.03, 2.0, 10, 2)

    def slices(
        self, coefficient_RQ: Floats, exponent_RP: Floats, e: float, g: float
    ) -> Slice | None:
        found = self.constants(coefficient_RQ, exponent_RP)
        return Slice(*(found[name] for name in ("E", "A", "alpha", "B", "beta")))


@dataclasses.dataclass(frozen=True)
class Granularity(Additive):
    """L = c + (g G^-gamma + a) N^-alpha + b D^-beta (Krajewski et al. 2024).

    N is the total of non-embedding parameters in that work, at a fixed expansion rate.
    """

    name = "granularity"
    version = 1
    formula = "L = c + (g G^-gamma + a) N^-alpha + b D^-beta"
    needs: ClassVar[Mapping[str, int]] = {"n": 3, "d": 3, "g": 3}
    exponents = ("alpha", "beta", "gamma")
    every_coefficient = ("c", "a", "g", "b")
    low_P, high_P = np.full(3, _LOW), np.full(3, _HIGH)
    delta = 0.1

    def powers(self, exponent_RP: Floats, points: Points) -> tuple[Floats, Floats]:
        n_I, d_I, g_I = _logs(points, "n", "d", "g")
        alpha, beta, gamma = (exponent_RP[:, i : i + 1] for i in range(3))
        log_RIQ = -np.stack([alpha * n_I, alpha * n_I + gamma * g_I, beta * d_I], -1)
        dlog_RIQP = np.zeros((*log_RIQ.shape, 3))
        dlog_RIQP[:, :, :2, 0] = -n_I[:, None]
        dlog_RIQP[:, :, 1, 2] = -g_I
        dlog_RIQP[:, :, 2, 1] = -d_I
        return log_RIQ, dlog_RIQP

    def starts(self, points: Points) -> Floats:
        return log_grid(0.03, 1.5, 7, 3)

    def slices(
        self, coefficient_RQ: Floats, exponent_RP: Floats, e: float, g: float
    ) -> Slice | None:
        k = self.constants(coefficient_RQ, exponent_RP)
        return Slice(k["c"], k["a"] + k["g"] * g ** -k["gamma"], k["alpha"], k["b"], k["beta"])


@dataclasses.dataclass(frozen=True)
class Joint(Additive):
    """L = c + a Ehat^delta N^(alpha + gamma ln Ehat) + b Ehat^omega D^(beta + zeta ln Ehat).

    Ludziejewski et al. 2025 (arXiv 2502.05172), N active; Ehat(E) saturates as in Clark's law. The
    exponents alpha and beta are negative in this form.
    """

    name = "joint"
    version = 1
    formula = (
        "L = c + a Ehat^delta N^(alpha + gamma ln Ehat) + b Ehat^omega D^(beta + zeta ln Ehat)"
    )
    needs: ClassVar[Mapping[str, int]] = {"n": 3, "d": 3, "e": 4}
    exponents = ("alpha", "beta", "gamma", "zeta", "delta", "omega", START, END)
    every_coefficient = ("c", "a", "b")
    low_P = np.array([-2.0, -2.0, -0.5, -0.5, -6.0, -6.0, np.log(0.05), 0.01])
    high_P = np.array([-_LOW, -_LOW, 0.5, 0.5, 6.0, 6.0, np.log(100.0), 25.0])
    delta = 0.01

    def powers(self, exponent_RP: Floats, points: Points) -> tuple[Floats, Floats]:
        n_I, d_I = _logs(points, "n", "d")
        alpha, beta, gamma, zeta, delta, omega = (exponent_RP[:, i : i + 1] for i in range(6))
        u_RI, du_RIP = saturation(points.e_I - 1, exponent_RP[:, 6:])
        log_RIQ = np.stack(
            [
                delta * u_RI + (alpha + gamma * u_RI) * n_I,
                omega * u_RI + (beta + zeta * u_RI) * d_I,
            ],
            -1,
        )
        dlog_RIQP = np.zeros((*log_RIQ.shape, 8))
        sides = ((0, n_I, delta + gamma * n_I), (1, d_I, omega + zeta * d_I))
        for q, x_I, by_u_RI in sides:
            dlog_RIQP[:, :, q, q] = x_I
            dlog_RIQP[:, :, q, 2 + q] = u_RI * x_I
            dlog_RIQP[:, :, q, 4 + q] = u_RI
            dlog_RIQP[:, :, q, 6:] = by_u_RI[:, :, None] * du_RIP
        return log_RIQ, dlog_RIQP

    def starts(self, points: Points) -> Floats:
        # Eight dimensions are too many for a grid; the same draws each time.
        low = np.array([-0.6, -0.6, -0.05, -0.05, -0.6, -0.6, np.log(0.8), 1.0])
        high = np.array([-0.05, -0.05, 0.05, 0.05, 0.4, 0.4, np.log(8.0), 8.0])
        return np.random.default_rng(0).uniform(low, high, (512, 8))

    def constants(self, coefficient_RQ: Floats, exponent_RP: Floats) -> dict[str, Floats]:
        found = super().constants(coefficient_RQ, exponent_RP)
        found["E_start"] = np.exp(exponent_RP[:, 6])
        found["E_max"] = np.exp(exponent_RP[:, 6] + exponent_RP[:, 7])
        return {name: value for name, value in found.items() if name not in (START, END)}

    def search(self, constants: Mapping[str, float]) -> tuple[Floats, Floats]:
        return super().search(to_search(constants, "E_start", "E_max"))

    def slices(
        self, coefficient_RQ: Floats, exponent_RP: Floats, e: float, g: float
    ) -> Slice | None:
        k = self.constants(coefficient_RQ, exponent_RP)
        u_R = saturation(np.array([e - 1.0]), exponent_RP[:, 6:])[0][:, 0]
        return Slice(
            k["c"],
            k["a"] * np.exp(k["delta"] * u_R),
            -(k["alpha"] + k["gamma"] * u_R),
            k["b"] * np.exp(k["omega"] * u_R),
            -(k["beta"] + k["zeta"] * u_R),
        )
