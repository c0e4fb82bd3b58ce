"""Models on pods that `python -m tools.aot --table` compiles: data, no logic.

Meshes that fit, not the best ones; the README has what the compiler says of them."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Pod:
    """One row of the table.

    Attributes:
      config: arguments of `configs/lm.py`.
      topology: of one slice.
      slices: how many of them.
      mesh: as `--mesh`; every axis that is left out is 1.
      set: keys of the config that differ, as `--config.KEY=VALUE`.
    """

    config: str
    topology: str
    mesh: str
    slices: int = 1
    set: dict[str, object] = dataclasses.field(default_factory=dict)


_TOKENS = {"exchange.kind": "all_to_all", "exchange.overflow": "drop"}

PODS: tuple[Pod, ...] = (
    Pod("size=1b,moe=top_k,device=tpu", "v5e:8x8", "fsdp=32,expert=2", set={"train.accumulate": 2}),
    Pod("size=1b,moe=top_k,device=tpu", "v6e:8x8", "fsdp=32,expert=2"),
    Pod("size=1b,moe=top_k,device=tpu", "v5p:4x4x4", "fsdp=32,expert=2"),
    Pod("size=3b,moe=top_k,device=tpu", "v5e:16x16", "fsdp=128,expert=2"),
    Pod("size=3b,moe=top_k,device=tpu", "v6e:8x16", "fsdp=64,expert=2"),
    Pod("size=3b,moe=top_k,device=tpu", "v5p:4x4x8", "fsdp=64,expert=2"),
    Pod(
        "size=16b,moe=top_k,device=tpu",
        "v5e:16x16",
        "fsdp=64,expert=4",
        set=_TOKENS | {"train.accumulate": 4},
    ),
    Pod(
        "size=16b,moe=top_k,device=tpu",
        "v6e:16x16",
        "fsdp=64,expert=4",
        set=_TOKENS | {"train.accumulate": 2},
    ),
    Pod("size=16b,moe=top_k,device=tpu", "v5p:4x8x8", "fsdp=64,expert=4", set=_TOKENS),
    Pod(
        "size=112b,moe=top_k,device=tpu",
        "v5p:8x8x8",
        "data=2,fsdp=64,expert=8",
        2,
        set=_TOKENS | {"train.accumulate": 2},
    ),
    Pod(
        "size=671b,moe=top_k,device=tpu", "v5p:8x16x16", "data=4,fsdp=32,expert=32", 2, set=_TOKENS
    ),
)
"""The rows, from small to large."""
