"""Several runs in one process: one data build, one progress display, resumable as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from moejax.data import Dataset, prepare
from moejax.data.knobs import DataConfig
from moejax.train.entry import run
from moejax.train.experiment import Experiment
from moejax.train.flops import peak_flops
from moejax.train.progress import Progress


def run_suite(
    experiments: Mapping[str, Experiment], out: Path, progress: Progress, argv: list[str]
) -> list[Path]:
    """Trains every experiment in `out/NAME`, in order; returns the run directories.

    One thing after the other, so that every run has the machine to itself and their seconds can be
    compared. Nor does a thread compile while the data is prepared: tensorflow_datasets replaces
    Python's import for all threads while it loads its parts, and what JAX imports during a trace
    would come out broken.

    A run that is done is left alone and one that was interrupted goes on, so calling this again
    after a kill finishes the same job with the same numbers.

    Raises:
      ConfigError, RunError: of the run that cannot go on; the runs before it are complete.
    """
    progress.plan({experiment.name: experiment.total_steps for experiment in experiments.values()})
    datasets: dict[DataConfig, Dataset] = {}
    directories = []
    # The peak is measured before anything else competes for the cores.
    for cache in {experiment.data.cache_path for experiment in experiments.values()}:
        peak_flops(cache)
    for index, (name, experiment) in enumerate(experiments.items(), start=1):
        if experiment.data not in datasets:
            datasets[experiment.data] = prepare(experiment.data, progress.data)
        result = run(
            experiment,
            out / name,
            dataset=datasets[experiment.data],
            progress=progress,
            argv=argv,
        )
        if result.already_done:
            progress.skip(experiment.name)
        loss = result.final["eval"]["loss"]
        was = "was done already" if result.already_done else "done"
        progress.note(f"{index}/{len(experiments)} {name} {was}: validation loss {loss:.4f}")
        directories.append(result.workdir)
    return directories
