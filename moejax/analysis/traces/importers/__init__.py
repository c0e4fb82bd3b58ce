"""Router traces of other systems as traces of ours: `(T, L, k)` arrays, and JSON lines.

    from moejax.analysis.traces.importers import import_arrays, import_jsonl, write_imported
    write_imported("runs/olmoe", import_arrays(["request_0.npy", "request_1.npy"], experts=64))

The directory that comes out is a run without a config: the report and the metrics read it.
"""

from moejax.analysis.traces.importers.array import import_arrays
from moejax.analysis.traces.importers.directory import write_imported
from moejax.analysis.traces.importers.router_jsonl import import_jsonl
from moejax.analysis.traces.importers.table import Imported

__all__ = ["Imported", "import_arrays", "import_jsonl", "write_imported"]
