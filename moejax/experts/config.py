"""Knobs of an MoE layer, and their validation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from moejax.config.counts import LayerShape
from moejax.config.knobs import ConfigError, knob
from moejax.config.widths import WidthPlan
from moejax.experts.backends.grouped_matmul import MATMULS, check_installed
from moejax.experts.ffn import BACKENDS
from moejax.experts.spec import ACTIVATIONS, ROOM, ExpertsSpec, projections
from moejax.experts.zero_compute import ZeroCompute
from moejax.routing.capacity import CapacityConfig
from moejax.routing.contract import ROUTERS, Router
from moejax.routing.losses import LossesConfig
from moejax.routing.routers import TopK


@dataclasses.dataclass(frozen=True)
class MoeConfig:
    """One MoE layer: a router, routed experts, shared experts, losses and bounds."""

    experts: int = knob(
        8, low=1, unit="experts", doc="Routed FFN experts (E, unless `zero_compute` adds some)."
    )
    widths: WidthPlan = WidthPlan()
    router: Router = knob(TopK(), registry=ROUTERS)
    shared_width: int = knob(
        0,
        low=0,
        unit="hidden units",
        doc="Width of the shared expert that every token uses; several shared experts are one "
        "wide MLP (DeepSeekMoE).",
    )
    shared_gate: bool = knob(
        False, doc="Multiply the shared expert's output by sigmoid(w x) (Qwen2-MoE)."
    )
    zero_compute: ZeroCompute = ZeroCompute()
    losses: LossesConfig = LossesConfig()
    capacity: CapacityConfig = CapacityConfig()
    activation: str = knob("swiglu", choices=tuple(ACTIVATIONS), doc="Expert activation.")
    backend: str = knob(
        "auto", choices=("auto", *BACKENDS), doc="How experts are computed; same results."
    )
    tile: int = knob(128, low=1, unit="rows", doc="Rows per tile of the `tiles` back end, at most.")
    rows_per_token: float = knob(
        0.0,
        low=0.0,
        unit="rows per token",
        doc="Rows that the `grouped` back end holds at a time; a batch that needs more takes "
        "further passes. 0: 1.25 times the planned experts per token.",
    )
    grouped_matmul: str = knob(
        "auto",
        choices=("auto", *MATMULS),
        doc="What the `grouped` back end multiplies with; same results.",
    )

    def validate(self, path: str) -> None:
        """Raises ConfigError when the parts do not fit together."""
        widths = self.widths.widths(self.experts, f"{path}.widths")
        if not any(widths):
            raise ConfigError(f"{path}.widths: every expert has width 0")
        if self.shared_gate and not self.shared_width:
            raise ConfigError(
                f"{path}.shared_gate: there is no shared expert to gate ({path}.shared_width=0); "
                f"nearest valid value False"
            )
        # Only the layer knows how many there are; a router that weighs them apart must agree.
        zero_experts = getattr(self.router, "zero_experts", 0)
        if zero_experts not in (0, self.zero_compute.zero):
            raise ConfigError(
                f"{path}.router.zero_experts={zero_experts}: the layer has "
                f"{self.zero_compute.zero} zero experts ({path}.zero_compute.zero); nearest valid "
                f"value {self.zero_compute.zero}"
            )
        check_installed(self.grouped_matmul, f"{path}.grouped_matmul")
        self.router.check_experts(self.num_experts, f"{path}.router")
        self.losses.check_router(self.router, self.num_experts, f"{path}.losses")
        for name, value, partner, given, what in self._one_quantity():
            if value != given:
                raise ConfigError(
                    f"{path}.losses.{name}={value}: {path}.{partner} gives {given} for {what}; "
                    f"nearest valid value {given}"
                )

    def _one_quantity(self) -> Iterator[tuple[str, float, str, float, str]]:
        """Knobs of two parts that are one number in the papers, where both are in use: the loss's
        knob and its value, the knob that it must equal and its value, what both speak of."""
        losses, bounds, used = self.losses, self.capacity, self.losses.coefficients()
        conventions = {losses.load_balance.convention, bounds.convention}
        bounded = bounds.factor > 0 or bounds.eval_factor > 0
        if "load_balance" in used and bounded and conventions == {"moe_plus_plus"}:
            # MoE++, eq. 7 and 8: the same tau.
            what = "experts that compute nothing"
            yield "load_balance.tau", losses.load_balance.tau, "capacity.tau", bounds.tau, what
        groups = getattr(self.router, "groups", 1)
        if groups == 1:
            return
        # DeepSeek-V2: routing is limited to M of the D devices that both losses balance.
        for name, loss in (
            ("device_balance", losses.device_balance),
            ("communication", losses.communication),
        ):
            if name in used:
                yield f"{name}.groups", loss.groups, "router.groups", groups, "the same devices"
        if "communication" in used:
            sent = losses.communication.kept
            kept = getattr(self.router, "groups_kept", sent)
            yield "communication.kept", sent, "router.groups_kept", kept, "the devices of a token"

    @property
    def num_experts(self) -> int:
        """Experts that the router chooses from: FFN experts, then those that compute nothing."""
        return self.experts + self.zero_compute.total

    @property
    def spec(self) -> ExpertsSpec:
        """The static description that back ends work from; experts that compute nothing come last
        and have width 0."""
        return ExpertsSpec(
            widths=self.widths.widths(self.experts) + (0,) * self.zero_compute.total,
            unit=self.widths.unit_width,
            activation=self.activation,
            backend=self.backend,
            tile=self.tile,
            grouped_matmul=self.grouped_matmul,
            rows_per_token=self.rows_per_token
            or ROOM * self.router.nominal_active(self.num_experts),
        )

    def layer_shape(self, attention: LayerShape, d_model: int) -> LayerShape:
        """The counts' view of a transformer layer with this MoE FFN."""
        gates = d_model * self.shared_gate + self.zero_compute.num_parameters(d_model)
        return dataclasses.replace(
            attention,
            widths=self.spec.widths,
            shared_width=self.shared_width,
            ffn_matrices=len(projections(self.activation)),
            nominal_active=self.router.nominal_active(self.num_experts),
            router=self.router.registered_name,  # type: ignore[attr-defined]
            router_parameters=self.router.num_parameters(d_model, self.num_experts) + gates,
        )
