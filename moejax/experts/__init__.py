"""What is computed: expert widths, back ends, and the MoE layer."""

from moejax.config.widths import WidthPlan
from moejax.experts.config import MoeConfig
from moejax.experts.dense import DenseFFN
from moejax.experts.ffn import BACKENDS, expert_ffn
from moejax.experts.fine_grained import fine_grained
from moejax.experts.layer import MoELayer, MoeOutput, RouterState
from moejax.experts.spec import ExpertsSpec, init_weights
from moejax.experts.zero_compute import ZeroCompute, zero_compute

__all__ = [
    "BACKENDS",
    "DenseFFN",
    "ExpertsSpec",
    "MoELayer",
    "MoeConfig",
    "MoeOutput",
    "RouterState",
    "WidthPlan",
    "ZeroCompute",
    "expert_ffn",
    "fine_grained",
    "init_weights",
    "zero_compute",
]
