"""Who goes where: the router contract, its routers, losses, health and capacity."""

from moejax.routing import routers as routers
from moejax.routing.capacity import CapacityConfig
from moejax.routing.contract import ROUTERS, Card, Router, RouterInputs, Routing
from moejax.routing.health import health
from moejax.routing.ledger import CAUSES, Ledger, open_ledger
from moejax.routing.linear import LinearRouter, Selection
from moejax.routing.losses import LossesConfig
from moejax.routing.stats import RoutingStats, routing_stats
from moejax.routing.unscored import UnscoredRouter

__all__ = [
    "CAUSES",
    "ROUTERS",
    "CapacityConfig",
    "Card",
    "Ledger",
    "LinearRouter",
    "LossesConfig",
    "Router",
    "RouterInputs",
    "Routing",
    "RoutingStats",
    "Selection",
    "UnscoredRouter",
    "health",
    "open_ledger",
    "routing_stats",
]
