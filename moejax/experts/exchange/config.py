"""Knobs of the exchange."""

from __future__ import annotations

import dataclasses

from moejax.config.knobs import knob

KINDS = ("allgather", "all_to_all", "ragged")
OVERFLOW = ("exact", "drop")


@dataclasses.dataclass(frozen=True)
class ExchangeConfig:
    """How tokens reach experts on other devices; only `overflow=drop` can change a number."""

    kind: str = knob(
        "allgather",
        choices=KINDS,
        doc="allgather: all tokens to all devices of the expert axis, partial sums back. "
        "all_to_all: each token to the devices of its experts, in buffers of a fixed size per "
        "pair of devices. ragged: as all_to_all with one buffer per device (TPU and GPU only).",
    )
    factor: float = knob(
        2.0,
        low=0.0,
        low_open=True,
        unit="x planned rows",
        doc="Size of the buffers of all_to_all and ragged, at most what can ever be needed.",
    )
    overflow: str = knob(
        "exact",
        choices=OVERFLOW,
        doc="A batch that does not fit: exact: exchanged by allgather instead. drop: what does not "
        "fit is not computed and is counted in the ledger.",
    )
