"""Weights & Biases, for those who want it: an optional extra, offline unless asked."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from moejax.config.knobs import ConfigError


class WandB:
    """One W&B run per run directory: the id is derived from its path, and an attempt resumes it."""

    def __init__(
        self, workdir: Path, *, mode: str, project: str, name: str, config: dict[str, Any]
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                f"config.log.wandb={mode}: wandb is not installed; pip install 'moejax[wandb]', or "
                "nearest valid value 'off'"
            ) from error
        identity = hashlib.sha256(str(workdir.resolve()).encode()).hexdigest()[:16]
        self._run = wandb.init(
            project=project,
            name=name,
            id=identity,
            resume="allow",
            mode=mode,
            dir=str(workdir),
            config=config,
        )

    def write(self, line: dict[str, Any]) -> None:
        """Logs the numbers of a metrics line at its step."""
        numbers = {k: v for k, v in line.items() if isinstance(v, int | float)}
        self._run.log(numbers, step=line["step"])

    def flush(self) -> None:
        """W&B uploads by itself."""

    def close(self) -> None:
        """Marks the W&B run as finished."""
        self._run.finish()
