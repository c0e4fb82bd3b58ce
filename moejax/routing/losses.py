"""Auxiliary losses: pure functions of `RoutingStats`.

The "same" balance loss is scaled differently in every codebase (methods.md section 0.2); a
coefficient means nothing without its convention, so the convention is a named field. With `N`
experts, `f_e` the assignments of expert e per token (they sum to K, the mean number of experts
per token) and `Q_e` the mean probability of expert e:

| convention      | formula                                   | balance     | collapse |
|-----------------|-------------------------------------------|-------------|----------|
| `switch`        | `N sum f Q`, mean over layers             | K           | N        |
| `hf`            | `N sum f Q`, f and Q averaged over layers | K           | N (1)    |
| `deepseek`      | `N/K sum f Q` (eq. 12-14)                 | 1           | N/K      |
| `megatron`      | `N sum Q count/(T K)`                     | 1           | N/K      |
| `megablocks`    | `N/(L T K) sum_layers count . Q`          | 1           | N/K      |
| `hmoe`          | `N sum f Q` (HMoE eq. 3, Huang et al.)    | mean active | N        |
| `moe_plus_plus` | `sum eta f Q`, no N (eq. 7) (2)           | K/N         | 1        |

(1) if all layers collapse on the same experts; it only asks for balance summed over layers.
(2) at eta = 1; eta is `tau` for experts that compute nothing (width 0), which makes them cheap.
Collapse: every token puts all its probability, equally, on the same K experts. Gradients flow
only through Q (f is a count). All values are means over layers; where a codebase adds layers up
(DeepSeek, Megatron), its coefficient times the number of layers is ours.

Scope says over which tokens f and Q are taken before they are multiplied: `micro`, the micro-batch
at hand; `sequence`, each sequence, then the mean over sequences (DeepSeek-V2, V3 eq. 17-20);
`global`, all micro-batches of the optimiser step, which costs one more forward pass under gradient
accumulation. Values at balance and collapse are the same at every scope.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moejax.config.knobs import ConfigError, knob
from moejax.routing.contract import Router
from moejax.routing.stats import RoutingStats

CONVENTIONS = (
    "switch",
    "hf",
    "deepseek",
    "megatron",
    "megablocks",
    "hmoe",
    "moe_plus_plus",
)
SCOPES = ("micro", "sequence", "global")


@dataclasses.dataclass(frozen=True)
class LoadBalance:
    """Balance loss: pushes probability away from experts that hold many tokens."""

    coefficient: float = knob(0.01, low=0.0, doc="Weight in the total loss; 0 switches it off.")
    convention: str = knob(
        "deepseek", choices=CONVENTIONS, doc="Normalisation (docs/routing.md has the table)."
    )
    scope: str = knob("micro", choices=SCOPES, doc="Tokens over which loads are compared.")
    tau: float = knob(
        1.0,
        low=0.0,
        doc="Weight eta of experts that compute nothing, for the convention moe_plus_plus "
        "(MoE++ 0.75).",
    )


@dataclasses.dataclass(frozen=True)
class DeviceBalance:
    """Balance between groups of experts that live on one device (DeepSeekMoE eq. 15-17)."""

    coefficient: float = knob(0.0, low=0.0, doc="Weight (DeepSeekMoE 145B, DeepSeek-V2: 0.05).")
    groups: int = knob(4, low=1, unit="devices", doc="Groups of neighbouring experts (D).")
    scope: str = knob("micro", choices=SCOPES, doc="Tokens over which loads are compared.")


@dataclasses.dataclass(frozen=True)
class Communication:
    """Balance of the tokens that devices receive (DeepSeek-V2, methods C.6)."""

    coefficient: float = knob(0.0, low=0.0, doc="Weight (DeepSeek-V2: 0.02).")
    groups: int = knob(4, low=1, unit="devices", doc="Groups of neighbouring experts (D).")
    kept: int = knob(3, low=1, unit="devices", doc="Devices that a token may be sent to (M).")
    scope: str = knob("micro", choices=SCOPES, doc="Tokens over which loads are compared.")


@dataclasses.dataclass(frozen=True)
class Entropy:
    """Dynamic (entropy) loss of Huang et al. 2024: fewer experts per token under top-p."""

    coefficient: float = knob(0.0, low=0.0, doc="Weight (Huang et al. 1e-4; HMoE 3e-2).")


@dataclasses.dataclass(frozen=True)
class ParameterPenalty:
    """P-Penalty of HMoE (eq. 4): makes wide experts dear."""

    coefficient: float = knob(0.0, low=0.0, doc="Weight (HMoE 0.1).")
    normalise: bool = knob(
        True,
        doc="Width of an expert in units of the layer's mean width, so that equal widths give "
        "back the `hmoe` balance loss. False: raw hidden units (eq. 4 as printed).",
    )
    scope: str = knob("micro", choices=SCOPES, doc="Tokens over which loads are compared.")


@dataclasses.dataclass(frozen=True)
class ZLoss:
    """Router z-loss (ST-MoE): keeps logits small."""

    coefficient: float = knob(0.0, low=0.0, doc="Weight (ST-MoE, OLMoE 1e-3).")


@dataclasses.dataclass(frozen=True)
class LossesConfig:
    """The auxiliary losses of an MoE layer; a coefficient of 0 switches one off."""

    load_balance: LoadBalance = LoadBalance()
    entropy: Entropy = Entropy()
    parameter_penalty: ParameterPenalty = ParameterPenalty()
    z_loss: ZLoss = ZLoss()
    device_balance: DeviceBalance = DeviceBalance()
    communication: Communication = Communication()

    @property
    def per_sequence(self) -> bool:
        """Whether some loss needs statistics per sequence."""
        return bool(self.coefficients("sequence"))

    @property
    def num_groups(self) -> int | None:
        """Groups in which tokens must be counted, or None."""
        return self.communication.groups if self.communication.coefficient > 0 else None

    def check_router(self, router: Router, num_experts: int, path: str) -> None:
        """Raises ConfigError when a loss needs what the router or the layer does not have."""
        for name in self.coefficients():
            needs_logits = name == "z_loss"
            if not (router.has_logits if needs_logits else router.has_scores):
                what = "logits" if needs_logits else "scores"
                raise ConfigError(
                    f"{path}.{name}.coefficient: this router has no {what}; nearest valid value 0"
                )
        for name in ("device_balance", "communication"):
            loss = getattr(self, name)
            if loss.coefficient > 0 and num_experts % loss.groups:
                near = max(d for d in range(1, loss.groups + 1) if num_experts % d == 0)
                raise ConfigError(
                    f"{path}.{name}.groups={loss.groups}: does not divide {num_experts} experts; "
                    f"nearest valid value {near}"
                )
        sent = self.communication
        if sent.coefficient > 0 and sent.kept > sent.groups:
            raise ConfigError(
                f"{path}.communication.kept={sent.kept}: there are {sent.groups} groups; "
                f"nearest valid value {sent.groups}"
            )

    def coefficients(self, scope: str | None = None) -> dict[str, float]:
        """The losses in use (of one scope) and their weights. Losses that are means over tokens
        are the same at every scope and count as `micro`."""
        found = {}
        for field in dataclasses.fields(self):
            loss = getattr(self, field.name)
            if loss.coefficient > 0 and scope in (None, getattr(loss, "scope", "micro")):
                found[field.name] = loss.coefficient
        return found

    def values(
        self, stats: RoutingStats, widths: tuple[int, ...], names: Collection[str] | None = None
    ) -> dict[str, jax.Array]:
        """Unscaled value of every loss in use, averaged over the layers of `stats`.

        Args:
          stats: one layer's, or stacked `[L, ...]` statistics.
          widths: hidden width of each expert.
          names: only these.
        """
        balance, device, sent = self.load_balance, self.device_balance, self.communication
        penalty = self.parameter_penalty
        compute = {
            "load_balance": lambda: load_balance(
                stats,
                balance.convention,
                scope=balance.scope,
                eta=tuple(1.0 if width else balance.tau for width in widths),
            ),
            "entropy": lambda: entropy_loss(stats),
            "parameter_penalty": lambda: parameter_penalty(
                stats, widths, normalise=penalty.normalise, scope=penalty.scope
            ),
            "z_loss": lambda: z_loss(stats),
            "device_balance": lambda: device_balance(
                stats, neighbours(len(widths), device.groups), scope=device.scope
            ),
            "communication": lambda: communication(stats, sent.kept, scope=sent.scope),
        }
        wanted = self.coefficients() if names is None else names
        return {name: compute[name]() for name in wanted}


def load_balance(
    stats: RoutingStats,
    convention: str,
    *,
    scope: str = "micro",
    eta: tuple[float, ...] | None = None,
) -> jax.Array:
    """Load-balance loss under a named convention (see the table at the top), float32 scalar.

    Args:
      scope: `sequence` takes f and Q per sequence; the others use the sums as they are given.
      eta: weight of each expert, for `moe_plus_plus` (default: 1).

    Raises:
      ValueError: unknown convention or scope, or no statistics per sequence where they are needed.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"unknown convention {convention!r}; one of {', '.join(CONVENTIONS)}")
    sums = _sums(stats, scope)
    f_E, q_E = sums.f_E, sums.q_E
    if convention == "hf":
        layers = tuple(range(stats.tokens.ndim))
        f_E, q_E = f_E.mean(layers), q_E.mean(layers)
        if sums.used is not None:  # every layer sees the same sequences
            sums = sums._replace(used=sums.used.any(layers))
    if convention in ("deepseek", "megatron", "megablocks"):
        value = _over_k(f_E, q_E)
    elif convention == "moe_plus_plus":
        weight_E = 1.0 if eta is None else jnp.asarray(eta, jnp.float32)
        value = (weight_E * f_E * q_E).sum(-1)
    else:
        value = f_E.shape[-1] * (f_E * q_E).sum(-1)
    return sums.mean(value)


def device_balance(
    stats: RoutingStats, group_E: tuple[int, ...], *, scope: str = "micro"
) -> jax.Array:
    """DeepSeekMoE eq. 15-17: `sum_d f'_d P'_d` over groups of experts (devices), `f'` the mean of
    `N/K f` in the group, `P'` the group's probability.

    1 at perfect balance; with equal groups, their number when all tokens collapse into one.

    Args:
      group_E: group of each expert, counted from 0.
    """
    sums = _sums(stats, scope)
    member_EG = np.eye(max(group_E) + 1, dtype=np.float32)[list(group_E)]
    k = sums.f_E.sum(-1, keepdims=True)
    f_E = sums.f_E.shape[-1] * sums.f_E / jnp.where(k > 0, k, 1.0)
    f_G = f_E @ (member_EG / member_EG.sum(0))
    return sums.mean((f_G * (sums.q_E @ member_EG)).sum(-1))


def neighbours(num_experts: int, groups: int) -> tuple[int, ...]:
    """Group of each expert when equal groups hold neighbouring experts."""
    return tuple(expert * groups // num_experts for expert in range(num_experts))


def communication(stats: RoutingStats, kept: int, *, scope: str = "micro") -> jax.Array:
    """DeepSeek-V2's third loss: `sum_d f''_d P''_d`, `f''_d = D/(M T) *` tokens sent to device d.

    1 at perfect balance when every token goes to `kept` (M) of the D devices; D/M when all go to
    the same one.

    Raises:
      ValueError: `stats` were made without `num_groups`.
    """
    sums = _sums(stats, scope)
    sent_G = stats.sent_BG if scope == "sequence" else stats.sent_G
    if sent_G is None:
        raise ValueError("the communication loss needs statistics with num_groups")
    groups = sent_G.shape[-1]
    f_G = jax.lax.stop_gradient(sent_G / sums.tokens[..., None]) * groups / kept
    q_G = sums.q_E.reshape(*sums.q_E.shape[:-1], groups, -1).sum(-1)
    return sums.mean((f_G * q_G).sum(-1))


def entropy_loss(stats: RoutingStats) -> jax.Array:
    """Mean over tokens of `-sum_e P log P` in nats. Range `[0, log N]`: collapse on one expert
    gives 0, uniform probabilities log N. Minimising it sharpens each token's distribution.

    HMoE prints eq. 5 with the opposite sign, against its stated purpose (methods B.3)."""
    if stats.entropy is None:
        raise ValueError("the entropy loss needs a router with scores")
    return (stats.entropy / jnp.maximum(stats.tokens, 1)).mean()


def parameter_penalty(
    stats: RoutingStats,
    widths: tuple[int, ...],
    *,
    normalise: bool = True,
    scope: str = "micro",
) -> jax.Array:
    """HMoE eq. 4: `N sum_e M_e Phat_e`, `M_e` = assignments per token x width of the expert.

    With `normalise` widths are in units of their mean, and equal widths give the `hmoe` balance
    loss. At perfect balance the value is K whatever the widths; when all tokens collapse on the
    same K experts it is N times the mean width of those (N for average ones, more for wide ones).
    Without, both times the mean width in hidden units."""
    width_E = jnp.asarray(widths, jnp.float32)
    if normalise:
        width_E = width_E / width_E.mean()
    sums = _sums(stats, scope)
    return sums.mean(len(widths) * (sums.f_E * width_E * sums.q_E).sum(-1))


def z_loss(stats: RoutingStats) -> jax.Array:
    """Mean over tokens of `logsumexp(logits)^2` (ST-MoE; flaxformer, Megatron). At zero logits
    it is `(log N)^2`; it grows without bound with the logits."""
    if stats.z is None:
        raise ValueError("the z-loss needs a router with logits")
    return (stats.z / jnp.maximum(stats.tokens, 1)).mean()


class _Sums(NamedTuple):
    """What a balance loss multiplies, `[..., E]`; with a sequence axis at scope `sequence`.

    Attributes:
      f_E: assignments per token; no gradient.
      q_E: mean probability.
      tokens: float32 `[...]`, at least 1.
      used: bool `[..., B]`, sequences with tokens, or None.
    """

    f_E: jax.Array
    q_E: jax.Array
    tokens: jax.Array
    used: jax.Array | None

    def mean(self, value: jax.Array) -> jax.Array:
        """Mean over sequences that have tokens, then over layers."""
        if self.used is None:
            return value.mean()
        total = jnp.where(self.used, value, 0.0).sum(-1)
        return (total / jnp.maximum(self.used.sum(-1), 1)).mean()


def _sums(stats: RoutingStats, scope: str) -> _Sums:
    if scope not in SCOPES:
        raise ValueError(f"unknown scope {scope!r}; one of {', '.join(SCOPES)}")
    if stats.prob_E is None:
        raise ValueError("a balance loss needs a router with scores")
    count_E, prob_E, tokens = stats.count_E, stats.prob_E, stats.tokens
    used = None
    if scope == "sequence":
        if stats.count_BE is None or stats.prob_BE is None or stats.tokens_B is None:
            raise ValueError("scope 'sequence' needs statistics per sequence (num_sequences)")
        count_E, prob_E, tokens = stats.count_BE, stats.prob_BE, stats.tokens_B
        used = tokens > 0
    tokens = jnp.maximum(tokens, 1).astype(jnp.float32)
    f_E = jax.lax.stop_gradient(count_E / tokens[..., None])
    return _Sums(f_E, prob_E / tokens[..., None], tokens, used)


def _over_k(f_E: jax.Array, q_E: jax.Array) -> jax.Array:
    """`N/K sum f Q` with `K` the mean number of experts per token; 0 where nothing is routed."""
    k = f_E.sum(-1)
    return f_E.shape[-1] * (f_E * q_E).sum(-1) / jnp.where(k > 0, k, 1.0)
