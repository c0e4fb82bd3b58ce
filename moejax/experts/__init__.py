"""What is computed: expert widths, back ends, and the MoE layer."""

from moejax.config.widths import WidthPlan
from moejax.experts.config import MoeConfig
from moejax.experts.dense import GatedFFN
from moejax.experts.ffn import BACKENDS, expert_ffn
from moejax.experts.layer import MoELayer, MoeOutput, RouterState
from moejax.experts.spec import ExpertsSpec, init_weights

__all__ = [
    "BACKENDS",
    "ExpertsSpec",
    "GatedFFN",
    "MoELayer",
    "MoeConfig",
    "MoeOutput",
    "RouterState",
    "WidthPlan",
    "expert_ffn",
    "init_weights",
]
