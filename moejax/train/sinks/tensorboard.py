"""TensorBoard event files, written without TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class TensorBoard:
    """One event file per attempt; what an earlier attempt logged after `start_step` is purged.

    TensorBoard hides purged points, so a curve does not double back after a resume.
    """

    def __init__(self, directory: Path, attempt: int, start_step: int) -> None:
        import tensorboardX  # a second of import that runs without TensorBoard need not pay

        self._writer = tensorboardX.SummaryWriter(
            str(directory),
            purge_step=start_step + 1 if attempt > 1 else None,
            filename_suffix=f".attempt{attempt}",
        )

    def write(self, line: dict[str, Any]) -> None:
        """Adds the numbers of a metrics line at its step."""
        for key, value in line.items():
            if "/" in key and isinstance(value, int | float):
                self._writer.add_scalar(key, value, line["step"])

    def flush(self) -> None:
        """Writes what is queued."""
        self._writer.flush()

    def close(self) -> None:
        """Writes what is queued and closes the file."""
        self._writer.close()
