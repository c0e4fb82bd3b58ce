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
| `moe_plus_plus` | `sum eta f Q`, no N (eq. 7; eta = 1)      | K/N         | 1        |
| `deepseek_v3`   | `N/K sum f Q` per sequence, then mean     | 1           | N/K      |

(1) if all layers collapse on the same experts; it only asks for balance summed over layers.
Collapse: every token puts all its probability, equally, on the same K experts. Gradients flow
only through Q (f is a count). All values are means over layers.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

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
    "deepseek_v3",
)


@dataclasses.dataclass(frozen=True)
class LoadBalance:
    """Balance loss: pushes probability away from experts that hold many tokens."""

    coefficient: float = knob(0.01, low=0.0, doc="Weight in the total loss; 0 switches it off.")
    convention: str = knob(
        "deepseek", choices=CONVENTIONS, doc="Normalisation (docs/routing.md has the table)."
    )


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

    @property
    def per_sequence(self) -> bool:
        """Whether some loss needs statistics per sequence."""
        return self.load_balance.coefficient > 0 and self.load_balance.convention == "deepseek_v3"

    def check_router(self, router: Router, path: str) -> None:
        """Raises ConfigError when a loss needs what the router does not have."""
        for name in ("load_balance", "entropy", "parameter_penalty"):
            if getattr(self, name).coefficient > 0 and not router.has_scores:
                raise ConfigError(
                    f"{path}.{name}.coefficient: this router has no scores; nearest valid value 0"
                )
        if self.z_loss.coefficient > 0 and not router.has_logits:
            raise ConfigError(
                f"{path}.z_loss.coefficient: this router has no logits; nearest valid value 0"
            )

    def coefficients(self) -> dict[str, float]:
        """The losses in use and their weights."""
        weights = {f.name: getattr(self, f.name).coefficient for f in dataclasses.fields(self)}
        return {name: weight for name, weight in weights.items() if weight > 0}

    def values(self, stats: RoutingStats, widths: tuple[int, ...]) -> dict[str, jax.Array]:
        """Unscaled value of every loss in use, averaged over the layers of `stats`.

        Args:
          stats: one layer's, or stacked `[L, ...]` statistics.
          widths: hidden width of each expert.
        """
        compute = {
            "load_balance": lambda: load_balance(stats, self.load_balance.convention),
            "entropy": lambda: entropy_loss(stats),
            "parameter_penalty": lambda: parameter_penalty(
                stats, widths, normalise=self.parameter_penalty.normalise
            ),
            "z_loss": lambda: z_loss(stats),
        }
        return {name: compute[name]() for name in self.coefficients()}


def load_balance(stats: RoutingStats, convention: str) -> jax.Array:
    """Load-balance loss under a named convention (see the table at the top), float32 scalar.

    Raises:
      ValueError: unknown convention, or `deepseek_v3` without per-sequence statistics.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"unknown convention {convention!r}; one of {', '.join(CONVENTIONS)}")
    if convention == "deepseek_v3":
        if stats.count_BE is None or stats.tokens_B is None:
            raise ValueError("deepseek_v3 needs statistics per sequence (num_sequences)")
        f_E, q_E = _fractions(stats.count_BE, stats.prob_BE, stats.tokens_B)
        value = _over_k(f_E, q_E)
        used = stats.tokens_B > 0
        return (value.sum(-1) / jnp.maximum(used.sum(-1), 1)).mean()
    f_E, q_E = _fractions(stats.count_E, stats.prob_E, stats.tokens)
    num_experts = f_E.shape[-1]
    if convention == "hf":
        layers = tuple(range(f_E.ndim - 1))
        f_E, q_E = f_E.mean(layers), q_E.mean(layers)
    if convention in ("deepseek", "megatron", "megablocks"):
        return _over_k(f_E, q_E).mean()
    if convention == "moe_plus_plus":
        return (f_E * q_E).sum(-1).mean()
    return num_experts * (f_E * q_E).sum(-1).mean()


def entropy_loss(stats: RoutingStats) -> jax.Array:
    """Mean over tokens of `-sum_e P log P` in nats. Range `[0, log N]`: collapse on one expert
    gives 0, uniform probabilities log N. Minimising it sharpens each token's distribution.

    HMoE prints eq. 5 with the opposite sign, against its stated purpose (methods B.3)."""
    if stats.entropy is None:
        raise ValueError("the entropy loss needs a router with scores")
    return (stats.entropy / jnp.maximum(stats.tokens, 1)).mean()


def parameter_penalty(
    stats: RoutingStats, widths: tuple[int, ...], *, normalise: bool = True
) -> jax.Array:
    """HMoE eq. 4: `N sum_e M_e Phat_e`, `M_e` = assignments per token x width of the expert.

    With `normalise` widths are in units of their mean: the value is then K at perfect balance of
    equal experts, and equals the `hmoe` balance loss whenever the widths are equal."""
    width_E = jnp.asarray(widths, jnp.float32)
    if normalise:
        width_E = width_E / width_E.mean()
    f_E, q_E = _fractions(stats.count_E, stats.prob_E, stats.tokens)
    return f_E.shape[-1] * (f_E * width_E * q_E).sum(-1).mean()


def z_loss(stats: RoutingStats) -> jax.Array:
    """Mean over tokens of `logsumexp(logits)^2` (ST-MoE; flaxformer, Megatron). At zero logits
    it is `(log N)^2`; it grows without bound with the logits."""
    if stats.z is None:
        raise ValueError("the z-loss needs a router with logits")
    return (stats.z / jnp.maximum(stats.tokens, 1)).mean()


def _fractions(
    count_E: jax.Array, prob_E: jax.Array | None, tokens: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`f` (assignments per token; no gradient) and `Q` (mean probability)."""
    if prob_E is None:
        raise ValueError("a balance loss needs a router with scores")
    total = jnp.maximum(tokens, 1)[..., None].astype(jnp.float32)
    return jax.lax.stop_gradient(count_E / total), prob_E / total


def _over_k(f_E: jax.Array, q_E: jax.Array) -> jax.Array:
    """`N/K sum f Q` with `K` the mean number of experts per token; 0 where nothing is routed."""
    k = f_E.sum(-1)
    return f_E.shape[-1] * (f_E * q_E).sum(-1) / jnp.where(k > 0, k, 1.0)
