"""Segments: which block stands in which layer, and which runs of layers can be scanned.

A *plan* names the FFN of every layer: an `MoeConfig`, or None for a dense FFN. Layers that repeat
a pattern (say dense, MoE, dense, MoE) form one segment, whose parameters are stacked and scanned.
"""

from __future__ import annotations

import dataclasses

from moejax.experts.config import MoeConfig

Plan = tuple[MoeConfig | None, ...]


@dataclasses.dataclass(frozen=True)
class Segment:
    """`repeat` times the blocks of `pattern`, starting at layer `start`."""

    pattern: Plan
    repeat: int
    start: int

    def layers(self, position: int) -> tuple[int, ...]:
        """Model layers of the block at `position` of the pattern."""
        period = len(self.pattern)
        return tuple(self.start + position + period * i for i in range(self.repeat))


def segments(plan: Plan) -> tuple[Segment, ...]:
    """Divides a plan into segments, from the front: always the pattern that covers the most
    layers, the shortest such pattern among equals."""
    found = []
    start = 0
    while start < len(plan):
        best = Segment(plan[start : start + 1], 1, start)
        for period in range(1, (len(plan) - start) // 2 + 1):
            pattern = plan[start : start + period]
            repeat = 1
            while plan[start + repeat * period : start + (repeat + 1) * period] == pattern:
                repeat += 1
            if repeat > 1 and repeat * period > best.repeat * len(best.pattern):
                best = Segment(pattern, repeat, start)
        found.append(best)
        start += best.repeat * len(best.pattern)
    return tuple(found)
