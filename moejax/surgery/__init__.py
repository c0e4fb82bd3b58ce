"""Trained models taken apart and put together again: upcycling, MoEfication, pruning, masks."""

from moejax.surgery.layers import put_layers, take_layers
from moejax.surgery.moefication import CutLayer, Moefying, all_on, moefied_config, moefy
from moejax.surgery.partition import Partition, balanced_clusters
from moejax.surgery.router_fit import Fit, fit, measure
from moejax.surgery.upcycling import Upcycling, upcycle, upcycled_config

__all__ = [
    "CutLayer",
    "Fit",
    "Moefying",
    "Partition",
    "Upcycling",
    "all_on",
    "balanced_clusters",
    "fit",
    "measure",
    "moefied_config",
    "moefy",
    "put_layers",
    "take_layers",
    "upcycle",
    "upcycled_config",
]
