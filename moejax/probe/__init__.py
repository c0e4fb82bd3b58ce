"""Probes: what a trained checkpoint does with a text. Reads run directories, trains nothing.

`open_run` restores a checkpoint on any number of devices, `write_traces` runs it over a labelled
text and writes what happened to every token (docs/traces.md).
"""

from moejax.probe.corpus import Text, open_text
from moejax.probe.opened import OpenedRun, open_run
from moejax.probe.tracing import TraceOptions, trace, write_traces

__all__ = [
    "OpenedRun",
    "Text",
    "TraceOptions",
    "open_run",
    "open_text",
    "trace",
    "write_traces",
]
