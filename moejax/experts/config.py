"""Knobs of an MoE layer, and their validation."""

from __future__ import annotations

import dataclasses

from moejax.config.counts import LayerShape
from moejax.config.knobs import ConfigError, knob
from moejax.config.widths import WidthPlan
from moejax.experts.ffn import BACKENDS
from moejax.experts.spec import ACTIVATIONS, ExpertsSpec
from moejax.routing.capacity import CapacityConfig
from moejax.routing.contract import ROUTERS, Router
from moejax.routing.losses import LossesConfig
from moejax.routing.routers import TopK


@dataclasses.dataclass(frozen=True)
class MoeConfig:
    """One MoE layer: a router, routed experts, shared experts, losses and bounds."""

    experts: int = knob(8, low=1, unit="experts", doc="Routed experts (E).")
    widths: WidthPlan = WidthPlan()
    router: Router = knob(TopK(), registry=ROUTERS)
    shared_width: int = knob(
        0,
        low=0,
        unit="hidden units",
        doc="Width of the shared expert that every token uses; several shared experts are one "
        "wide MLP (DeepSeekMoE).",
    )
    losses: LossesConfig = LossesConfig()
    capacity: CapacityConfig = CapacityConfig()
    activation: str = knob("swiglu", choices=tuple(ACTIVATIONS), doc="Expert activation.")
    backend: str = knob(
        "auto", choices=("auto", *BACKENDS), doc="How experts are computed; same results."
    )
    tile: int = knob(128, low=1, unit="rows", doc="Rows per tile of the `tiles` back end.")

    def validate(self, path: str) -> None:
        """Raises ConfigError when the parts do not fit together."""
        widths = self.widths.widths(self.experts, f"{path}.widths")
        if not any(widths):
            raise ConfigError(f"{path}.widths: every expert has width 0")
        self.router.check_experts(self.experts, f"{path}.router")
        self.losses.check_router(self.router, f"{path}.losses")

    @property
    def spec(self) -> ExpertsSpec:
        """The static description that back ends work from."""
        return ExpertsSpec(
            widths=self.widths.widths(self.experts),
            unit=self.widths.unit_width,
            activation=self.activation,
            backend=self.backend,
            tile=self.tile,
        )

    def layer_shape(self, attention: LayerShape, d_model: int) -> LayerShape:
        """The counts' view of a transformer layer with this MoE FFN."""
        return dataclasses.replace(
            attention,
            widths=self.spec.widths,
            shared_width=self.shared_width,
            nominal_active=self.router.nominal_active(self.experts),
            router=self.router.registered_name,  # type: ignore[attr-defined]
            router_parameters=self.router.num_parameters(d_model, self.experts),
        )
