"""Traces: what a model did with each token of a text. NumPy only.

    from moejax.analysis.traces import find_traces, read_labels, read_trace
    for file in find_traces("runs/top_p"):
        trace = read_trace(file.path)

docs/traces.md describes the files; `importers` makes them from what other systems write.
"""

from moejax.analysis.traces.files import (
    LABELS,
    TraceFile,
    find_traces,
    read_trace,
    trace_bytes,
    write_trace,
)
from moejax.analysis.traces.labels import Labels, read_labels, write_labels
from moejax.analysis.traces.trace import (
    COLUMNS,
    EMPTY_SLOT,
    NO_COUNT,
    NO_TAG,
    Trace,
    TraceError,
    make_trace,
)

__all__ = [
    "COLUMNS",
    "EMPTY_SLOT",
    "LABELS",
    "NO_COUNT",
    "NO_TAG",
    "Labels",
    "Trace",
    "TraceError",
    "TraceFile",
    "find_traces",
    "make_trace",
    "read_labels",
    "read_trace",
    "trace_bytes",
    "write_labels",
    "write_trace",
]
