"""An imported trace as a directory that readers of runs take for a run."""

from __future__ import annotations

import os
import re
from pathlib import Path

from moejax.analysis import text
from moejax.analysis.traces.files import LABELS, write_trace
from moejax.analysis.traces.importers.table import Imported
from moejax.analysis.traces.labels import Labels, tokens_hash, write_labels
from moejax.config.files import write_json
from moejax.config.knobs import ConfigError

MODEL_FORMAT = 1


def write_imported(
    out: str | os.PathLike[str], imported: Imported, corpus: str = "imported"
) -> Path:
    """Writes `model.json`, `trace/CORPUS/STEP.npz` and its `labels.json`; returns the `.npz`.

    `model.json` has what the trace tells: which layers are MoE layers and how many experts each
    has. There is no config, no loss curve and no count of parameters.

    Args:
      out: a new directory, or one of an earlier import.
      imported: what `import_arrays` or `import_jsonl` returned.
      corpus: names the text: traces of the same text by other models should have the same.

    Raises:
      ConfigError: a real run is there, or the name is none for a folder.
    """
    root = Path(out)
    if not re.fullmatch(r"[\w.-]{1,80}", corpus) or corpus.startswith("."):
        raise ConfigError(f"--corpus={text.clean(corpus, 80)!r}: letters, digits, '-', '_' and '.'")
    if root.exists() and not root.is_dir():
        raise ConfigError(f"{root}: is a file; --out needs a directory")
    if (root / "config.json").exists():
        raise ConfigError(f"{root}: holds a run of its own; choose another --out")
    trace = imported.trace
    assert trace.step is not None
    layers = [
        {
            "index": int(index),
            "name": name,
            "kind": "moe",
            "experts": int(exists_E.sum()),
        }
        for index, name, exists_E in zip(
            trace.layers_L, imported.layer_names, trace.exists_LE, strict=True
        )
    ]
    path = root / "trace" / corpus / f"{trace.step}.npz"
    write_trace(path, trace)
    write_labels(path.with_name(LABELS), Labels(corpus=corpus, tokens_sha256=tokens_hash(trace)))
    write_json(
        root / "model.json",
        {
            "format_version": MODEL_FORMAT,
            "imported": imported.origin,
            "width_unit": "one expert",
            "layers": layers,
        },
    )
    return path
