"""One file per router: its knobs, its rule and its registration."""

from moejax.routing.routers.top_k import TopK, top_k
from moejax.routing.routers.top_p import TopP, top_p

__all__ = ["TopK", "TopP", "top_k", "top_p"]
