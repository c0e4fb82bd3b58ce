"""What a scaling law is to the fit: columns at given exponents, and names for its constants."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from moejax.analysis.scaling.descent import Floats
from moejax.analysis.scaling.points import Points
from moejax.analysis.scaling.separable import Design

Terms = Callable[[Floats], tuple[Floats, Floats]]


@dataclasses.dataclass(frozen=True, eq=False)
class Slice:
    """A law at a fixed number of experts and granularity, E + A N^-alpha + B D^-beta, all `[R]`."""

    constant_R: Floats
    a_R: Floats
    alpha_R: Floats
    b_R: Floats
    beta_R: Floats

    def loss(self, n: Floats, d: Floats) -> Floats:
        """The loss; `n` and `d` broadcast against `[R]`."""
        return self.constant_R + self.a_R * n**-self.alpha_R + self.b_R * d**-self.beta_R


class Law(abc.ABC):
    """A law, linear in its coefficients (`Q`) once its exponents (`P`) are known.

    `name`, `version` (raised when the meaning of a constant changes), `formula`; `needs`: the
    columns that it reads, with how many different values it takes to tell its constants apart;
    `coefficients`, `exponents`: names; `low_P`, `high_P`: bounds of the exponents.
    """

    nonnegative: bool
    response = "loss"

    @property
    @abc.abstractmethod
    def name(self) -> str: ...

    @property
    @abc.abstractmethod
    def version(self) -> int: ...

    @property
    @abc.abstractmethod
    def formula(self) -> str: ...

    @property
    @abc.abstractmethod
    def needs(self) -> Mapping[str, int]: ...

    @property
    @abc.abstractmethod
    def coefficients(self) -> tuple[str, ...]: ...

    @property
    @abc.abstractmethod
    def exponents(self) -> tuple[str, ...]: ...

    @property
    @abc.abstractmethod
    def low_P(self) -> Floats: ...

    @property
    @abc.abstractmethod
    def high_P(self) -> Floats: ...

    @property
    def delta(self) -> float:
        """Where Huber's loss turns absolute, in ln loss, if the user does not say."""
        return 1e-3

    @property
    def parameters(self) -> int:
        """How many constants are fitted."""
        return len(self.coefficients) + len(self.exponents)

    @abc.abstractmethod
    def design(self, points: Points) -> Callable[[Floats], Design]:
        """Columns at exponents `[R, P]`."""

    @abc.abstractmethod
    def starts(self, points: Points) -> Floats:
        """Exponents `[R, P]` from which a search must begin."""

    @abc.abstractmethod
    def target(self, points: Points) -> Floats:
        """What the columns should sum to `[I]`."""

    @abc.abstractmethod
    def untarget(self, target: Floats) -> Floats:
        """The response that belongs to a sum of columns: the inverse of `target`."""

    @abc.abstractmethod
    def scale(self, target_I: Floats) -> Floats:
        """1 / the error of the target that is an error of 1 in ln response `[I]`."""

    def constants(self, coefficient_RQ: Floats, exponent_RP: Floats) -> dict[str, Floats]:
        """The constants as they are published, each `[R]`."""
        values = [*coefficient_RQ.T, *exponent_RP.T]
        return dict(zip((*self.coefficients, *self.exponents), values, strict=True))

    def search(self, constants: Mapping[str, float]) -> tuple[Floats, Floats]:
        """Coefficients `[1, Q]` and exponents `[1, P]` of published constants."""
        return (
            np.array([[constants[name] for name in self.coefficients]], np.float64),
            np.array([[constants[name] for name in self.exponents]], np.float64),
        )

    def predict(self, coefficient_RQ: Floats, exponent_RP: Floats, points: Points) -> Floats:
        """The response `[R, I]` at the points' numbers."""
        made = self.design(points)(exponent_RP)
        return self.untarget(made.value(coefficient_RQ * np.exp(made.shift_RQ)))

    def slices(
        self, coefficient_RQ: Floats, exponent_RP: Floats, e: float, g: float
    ) -> Slice | None:
        """The law in N and D alone at `e` experts and granularity `g`; None if it has no D."""
        return None


@dataclasses.dataclass(frozen=True)
class Additive(Law):
    """A constant and products of powers, all with coefficients >= 0; may have its constant pinned.

    Fitted to the loss itself, with errors relative to it.
    """

    pinned: float | None = None
    """The value of the constant if it is given and not fitted, nats per token."""

    nonnegative = True

    @property
    @abc.abstractmethod
    def every_coefficient(self) -> tuple[str, ...]:
        """Names of all coefficients, the constant first."""

    @abc.abstractmethod
    def powers(self, exponent_RP: Floats, points: Points) -> tuple[Floats, Floats]:
        """ln of the columns behind the constant `[R, I, Q - 1]`, derivatives `[R, I, Q - 1, P]`."""

    def mask(self, points: Points) -> np.ndarray | None:
        """Which points a column concerns `[I, Q]`; None: all."""
        return None

    @property
    def coefficients(self) -> tuple[str, ...]:
        return self.every_coefficient[0 if self.pinned is None else 1 :]

    @property
    def offset(self) -> float:
        """The pinned constant, or 0."""
        return 0.0 if self.pinned is None else self.pinned

    def terms(self, points: Points) -> Terms:
        """ln of all columns `[R, I, Q]` and derivatives `[R, I, Q, P]`, as a function."""

        def at(exponent_RP: Floats) -> tuple[Floats, Floats]:
            log_RIQ, dlog_RIQP = self.powers(exponent_RP, points)
            if self.pinned is None:
                log_RIQ = np.concatenate([np.zeros_like(log_RIQ[..., :1]), log_RIQ], 2)
                dlog_RIQP = np.concatenate([np.zeros_like(dlog_RIQP[:, :, :1]), dlog_RIQP], 2)
            return log_RIQ, dlog_RIQP

        return at

    def design(self, points: Points) -> Callable[[Floats], Design]:
        terms, mask_IQ = self.terms(points), self.mask(points)

        def at(exponent_RP: Floats) -> Design:
            log_RIQ, dlog_RIQP = terms(exponent_RP)
            shift_RQ = log_RIQ.mean(1)
            phi_RIQ = np.exp(log_RIQ - shift_RQ[:, None, :])
            if mask_IQ is not None:
                phi_RIQ = phi_RIQ * mask_IQ
            return Design(phi_RIQ, phi_RIQ[..., None] * dlog_RIQP, shift_RQ)

        return at

    def target(self, points: Points) -> Floats:
        return points.column(self.response) - self.offset

    def untarget(self, target: Floats) -> Floats:
        return target + self.offset

    def scale(self, target_I: Floats) -> Floats:
        return 1.0 / (target_I + self.offset)

    def constants(self, coefficient_RQ: Floats, exponent_RP: Floats) -> dict[str, Floats]:
        found = super().constants(coefficient_RQ, exponent_RP)
        if self.pinned is None:
            return found
        return {self.every_coefficient[0]: np.full(len(exponent_RP), self.pinned)} | found


class LogLinear(Law):
    """A law whose log10 is linear in its coefficients; fitted to log10 of the response."""

    nonnegative = False

    def target(self, points: Points) -> Floats:
        return np.log10(points.column(self.response))

    def untarget(self, target: Floats) -> Floats:
        return np.asarray(10.0**target)

    def scale(self, target_I: Floats) -> Floats:
        return np.full(target_I.shape, np.log(10.0))


def log_grid(low: float, high: float, count: int, dimensions: int) -> Floats:
    """A grid of geometrically spaced exponents `[count^dimensions, dimensions]`."""
    axis = np.geomspace(low, high, count)
    return np.stack(np.meshgrid(*[axis] * dimensions, indexing="ij"), -1).reshape(-1, dimensions)
