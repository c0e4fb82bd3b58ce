"""One file per router: its knobs, its rule and its registration."""

from moejax.routing.routers.expert_choice import ExpertChoice, choose_tokens
from moejax.routing.routers.fixed_masks import FixedMasks
from moejax.routing.routers.hash import Hash
from moejax.routing.routers.learned_masks import LearnedMasks
from moejax.routing.routers.moe_plus_plus import MoEPlusPlus
from moejax.routing.routers.moefication import MoEfication
from moejax.routing.routers.noisy_top_k import NoisyTopK
from moejax.routing.routers.oracle import Oracle
from moejax.routing.routers.random import Random
from moejax.routing.routers.remoe import ReMoE
from moejax.routing.routers.round_robin import RoundRobin
from moejax.routing.routers.sigmoid_bias import SigmoidBias
from moejax.routing.routers.top_k import TopK, top_k
from moejax.routing.routers.top_p import TopP, top_p

__all__ = [
    "ExpertChoice",
    "FixedMasks",
    "Hash",
    "LearnedMasks",
    "MoEPlusPlus",
    "MoEfication",
    "NoisyTopK",
    "Oracle",
    "Random",
    "ReMoE",
    "RoundRobin",
    "SigmoidBias",
    "TopK",
    "TopP",
    "choose_tokens",
    "top_k",
    "top_p",
]
