"""Several runs in one process: one data build, one progress display, resumable as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from moejax.data import Dataset, prepare
from moejax.data.knobs import DataConfig
from moejax.train.entry import is_done, run
from moejax.train.experiment import Experiment
from moejax.train.flops import peak_flops
from moejax.train.programs import compile_programs
from moejax.train.progress import Progress
from moejax.train.rundir import RunDir


def run_suite(
    experiments: Mapping[str, Experiment], out: Path, progress: Progress, argv: list[str]
) -> list[Path]:
    """Trains every experiment in `out/NAME`, in order; returns the run directories.

    A thread of its own compiles all models while the data of the first is prepared; training waits
    for it, so that every run has the machine to itself and their seconds can be compared. A run
    that is done is left alone and one that was interrupted goes on, so calling this again after a
    kill finishes the same job with the same numbers.

    Raises:
      ConfigError, RunError: of the run that cannot go on; the runs before it are complete.
    """
    progress.plan({experiment.name: experiment.total_steps for experiment in experiments.values()})
    datasets: dict[DataConfig, Dataset] = {}
    directories = []
    # The peak is measured before anything else competes for the cores.
    for cache in {experiment.data.cache_path for experiment in experiments.values()}:
        peak_flops(cache)
    compiler = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compile")
    try:
        programs = {
            name: compiler.submit(compile_programs, experiment)
            for name, experiment in experiments.items()
            if not is_done(RunDir(out / name))
        }
        for index, (name, experiment) in enumerate(experiments.items(), start=1):
            if experiment.data not in datasets:
                datasets[experiment.data] = prepare(experiment.data, progress.data)
            for done, compiled in enumerate(programs.values()):
                progress.data("compiling", done, len(programs))
                wait([compiled])
            result = run(
                experiment,
                out / name,
                dataset=datasets[experiment.data],
                # Popped, so that a finished run's programs can be freed.
                programs=programs.pop(name).result if name in programs else None,
                progress=progress,
                argv=argv,
            )
            if result.already_done:
                progress.skip(experiment.name)
            loss = result.final["eval"]["loss"]
            was = "was done already" if result.already_done else "done"
            progress.note(f"{index}/{len(experiments)} {name} {was}: validation loss {loss:.4f}")
            directories.append(result.workdir)
    finally:
        compiler.shutdown(cancel_futures=True)
    return directories
