"""Prepare a corpus and print what it is made of: packages, licences, sizes, hashes.

usage:
  python -m tools.prepare [--KNOB=VALUE ...] [--verify]

examples:
  python -m tools.prepare
  python -m tools.prepare --corpus='files:books/**/*.txt' --tokenizer=bpe --bpe_vocab_size=1024
  python -m tools.prepare --config=configs/lm.py:size=nano --config.data.seq_len=256
"""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Any

from absl import flags
from ml_collections import config_flags

from moejax.config import build, to_plain
from moejax.config.knobs import knob_of
from moejax.data import DataConfig, Dataset, prepare
from moejax.train.cli import launch

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Take the knobs from the `data` part of this training config."
)
_VERIFY = flags.DEFINE_boolean("verify", False, "Also check every byte of the prepared data.")
_FLAG_OF: dict[type, Any] = {
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}
_KNOBS = {
    field.name: _FLAG_OF.get(type(field.default), flags.DEFINE_list)(
        field.name, field.default, knob_of(field).doc
    )
    for field in dataclasses.fields(DataConfig)
    if field.default is not None  # no flag says a whole text; a --config does
}


def table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Returns rows under a header; numbers to the right with thousands separated."""
    cells = [[f"{c:,}" if isinstance(c, int) else str(c) for c in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [all(isinstance(row[i], int) for row in rows) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if on_right else cell.ljust(width)
            for cell, width, on_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    )


def describe(dataset: Dataset) -> str:
    """Returns the tables of a dataset: sources, domains, splits, baselines."""
    manifest = dataset.manifest
    sources = [
        (
            row["domain"],
            " ".join(
                str(row[key]) for key in ("package", "version", "file", "dataset") if key in row
            ),
            row["licence"],
            row["bytes"],
            row["sha256"][:12],
        )
        for row in manifest["sources"]
    ]
    domains = [
        (
            row["domain"],
            row["documents"],
            row["bytes"],
            row["validation_documents"],
            row["validation_bytes"],
            row["left_out_documents"],
            row["sha256"][:12],
        )
        for row in manifest["documents"]
    ]
    splits = [
        (s.name, s.num_documents, s.num_bytes, s.num_tokens, f"{s.bytes_per_token:.3f}")
        for s in (dataset.train, dataset.validation)
    ]
    base = manifest["baselines"]
    return "\n\n".join(
        [
            table(("domain", "source", "licence", "bytes", "sha256"), sources),
            table(
                ("domain", "documents", "bytes", "validation", "bytes", "left out", "sha256"),
                domains,
            ),
            table(("split", "documents", "bytes", "tokens", "bytes/token"), splits),
            f"tokenizer   {dataset.tokenizer.name}, vocabulary {dataset.vocab_size:,}, "
            f"sha256 {dataset.tokenizer_hash[:12]}\n"
            f"baselines   unigram {base['unigram']:.4f}, bigram {base['bigram']:.4f} nats/token "
            f"on {base['positions']:,} validation tokens\n"
            f"manifest    {dataset.manifest_hash}\n"
            f"directory   {dataset.directory}",
        ]
    )


class Progress:
    """Prints a stage when it starts and when it is done."""

    def __init__(self) -> None:
        self._stage, self._start = "", 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self._stage, self._start = stage, time.monotonic()
            print(f"{stage} ...", file=sys.stderr, flush=True)
        if done == total:
            seconds = time.monotonic() - self._start
            print(f"{stage}: done, {seconds:.1f} s", file=sys.stderr, flush=True)


def main(argv: list[str]) -> None:
    """Builds the config from the flags, prepares it and prints the tables."""
    del argv
    base = to_plain(DataConfig()) if _CONFIG.value is None else dict(_CONFIG.value.data)
    given = {name: flag.value for name, flag in _KNOBS.items() if flag.present}
    dataset = prepare(build(DataConfig, base | given, "config.data"), Progress())
    if _VERIFY.value:
        dataset.verify()
    print(describe(dataset))


if __name__ == "__main__":
    launch(main)
