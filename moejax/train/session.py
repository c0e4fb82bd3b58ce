"""One attempt at a run: from its data and newest checkpoint to the loop."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax.numpy as jnp

from moejax.config.files import read_json
from moejax.config.knobs import ConfigError
from moejax.data import Dataset, EvalStream, open_stream, prepare
from moejax.sharding import Rows
from moejax.train import environment, rundir
from moejax.train.base import read_base, require_base
from moejax.train.checkpoint import Checkpoints
from moejax.train.clock import Clock
from moejax.train.errors import StorageError
from moejax.train.evaluate import Evaluator
from moejax.train.experiment import Experiment
from moejax.train.flops import FlopsMeter, peak_flops
from moejax.train.log import RunLog, Sink
from moejax.train.loop import Loop
from moejax.train.mirror import Mirror
from moejax.train.profile import Profiler
from moejax.train.programs import (
    Programs,
    compile_programs,
    describe_mesh,
    experiment_mesh,
)
from moejax.train.progress import Progress
from moejax.train.rundir import RunDir, Status
from moejax.train.sinks.jsonl import MetricsFile, NoMetrics, Record, truncate
from moejax.train.sinks.tensorboard import TensorBoard
from moejax.train.sinks.wandb import WandB
from moejax.train.state import TrainState
from moejax.train.votes import Votes, on_first, require_equal


@dataclasses.dataclass
class Session:
    """One attempt at a run."""

    experiment: Experiment
    plain: dict[str, Any]
    run_dir: RunDir
    status: Status
    log: RunLog
    mirror: Mirror
    progress: Progress
    stop: Votes
    profiler: Profiler
    seen_before: bool

    def train(self, dataset: Dataset | None, model: Any, argv: list[str]) -> dict[str, Any]:
        """Assembles the parts, trains, and returns the content of final.json."""
        experiment = self.experiment
        self.status.set()
        new = environment.collect(argv, self._mesh_shape())
        on_first(lambda: self._record_environment(new))
        on_first(self.mirror.claim)
        if experiment.finetune is not None and not self.seen_before:
            require_base(experiment.finetune, experiment)
        if dataset is None:
            dataset = prepare(experiment.data, self.progress.data)
        config = experiment.evaluation
        validation = EvalStream(
            dataset,
            batch_size=config.batch_size,
            seq_len=experiment.data.seq_len,
            max_tokens=config.max_tokens,
        )
        self.stop.meet()
        if self.stop.requested:
            raise self.stop.error("stopped before the first step; nothing to save")
        self._check_data(dataset, validation)
        programs = self._compiled(model)
        model = programs.model
        meter = FlopsMeter(model.shape(), experiment.data.seq_len)
        self._describe_model(model)
        checkpoints = Checkpoints(
            self.run_dir.checkpoints,
            self.run_dir.damaged,
            experiment.checkpoint.keep,
            programs.layout,
        )
        try:
            state, clock = self._start(programs, checkpoints)
            self.stop.meet()
            self.progress.begin(experiment.name, experiment.total_steps, clock.step)
            stream = open_stream(
                dataset,
                experiment.data,
                seed=experiment.seed,
                batch_size=experiment.train.batch_size,
                progress=self.progress.data,
            )
            evaluator = Evaluator(
                model,
                programs.eval_step,
                validation.batches,
                len(validation.windows),
                Rows(programs.mesh, config.batch_size),
                experiment.evaluation,
                dataset.validation.bytes_per_token,
                programs.tuning,
            )
            sinks, metrics_file = self._sinks(clock)
            peak = tuple(on_first(lambda: peak_flops(experiment.data.cache_path, programs.mesh)))
            self.log.record(f"MFU is relative to {peak[0]:.4g} FLOP/s, the {peak[1]}")
            loop = Loop(
                experiment=experiment,
                run_dir=self.run_dir,
                model=model,
                programs=programs,
                evaluator=evaluator,
                stream=stream,
                rows=Rows(programs.mesh, experiment.train.batch_size),
                checkpoints=checkpoints,
                metrics_file=metrics_file,
                sinks=sinks,
                meter=meter,
                peak=peak,
                status=self.status,
                log=self.log,
                mirror=self.mirror,
                progress=self.progress,
                stop=self.stop,
                profiler=self.profiler,
                clock=clock,
            )
            try:
                return loop.run(state)
            finally:
                self.profiler.close()
                for sink in sinks:
                    sink.close()
        finally:
            checkpoints.close()

    def _mesh_shape(self) -> dict[str, int]:
        mesh = experiment_mesh(self.experiment)
        return {} if mesh is None else {axis: n for axis, n in mesh.shape.items() if n > 1}

    def _record_environment(self, new: dict[str, Any]) -> None:
        history: list[dict[str, Any]] = []
        changes: list[str] = []
        if self.run_dir.env.exists():
            old = read_json(self.run_dir.env)
            history = [*old.get("history", []), {k: v for k, v in old.items() if k != "history"}]
            changes = environment.bitwise_changes(old, new)
        if changes:
            self.log.say(
                f"not bitwise comparable with attempt {len(history)}: {'; '.join(changes)}"
            )
        earlier = all(entry.get("bitwise_comparable", True) for entry in history)
        comparable = earlier and not changes
        record = new | {
            "attempt": self.status.attempt,
            "started": time.time(),
            "bitwise_comparable": comparable,
            "changes": changes,
            "history": history,
        }
        self.run_dir.write_json(self.run_dir.env, record)

    def _check_data(self, dataset: Dataset, validation: EvalStream) -> None:
        """Writes data.json, or compares the identity of text and tokenizer with the one there.

        Raises:
          ConfigError: they are others, or not the same in all processes.
        """
        if self.experiment.model.vocab_size < dataset.vocab_size:
            raise ConfigError(
                f"config.model.vocab_size={self.experiment.model.vocab_size}: is smaller than the "
                f"tokenizer's {dataset.vocab_size}; nearest valid value {dataset.vocab_size}"
            )
        # Baselines of exactly the text that is evaluated: the report compares like with like.
        info = dataset.info(validation.baselines())
        identity = " ".join(str(info[key]) for key in ("manifest_hash", "tokenizer_hash"))
        require_equal("the text and tokenizer", identity)
        on_first(lambda: self._compare_data(info))

    def _compare_data(self, info: dict[str, Any]) -> None:
        path = self.run_dir.data
        if path.exists():
            old = read_json(path)
            for key in ("manifest_hash", "tokenizer_hash"):
                if old.get(key) != info[key]:
                    raise ConfigError(
                        f"{path}: {key} was {old.get(key)!r} and is {info[key]!r} now: the text or "
                        "the tokenizer changed since this run began; restore it, or use a new "
                        "--workdir"
                    )
        else:
            self.run_dir.write_json(path, info)

    def _describe_model(self, model: Any) -> None:
        described = dict(model.describe(self.experiment.data.seq_len)) | {
            "format_version": rundir.FORMAT_VERSION
        }
        if not self.run_dir.model.exists():
            self.run_dir.write_json(self.run_dir.model, described)

    def _start(self, programs: Programs, checkpoints: Checkpoints) -> tuple[TrainState, Clock]:
        """The state to go on from: the newest whole checkpoint, else the initial one."""
        restored = checkpoints.restore_newest(self.log.say)
        if restored is not None:
            state, clock = restored
            on_first(lambda: self._cut_metrics(clock))
            self._require_best(clock, checkpoints)
            self.log.say(f"resumed at step {clock.step}, attempt {self.status.attempt}")
            return state, clock
        on_first(lambda: truncate(self.run_dir.metrics, -1, -1))
        if self.seen_before and self.status.attempt > 1:
            self.log.say(f"no checkpoint yet: starting at step 0, attempt {self.status.attempt}")
        self.progress.phase("initialising")
        seed, finetune = jnp.int32(self.experiment.seed), self.experiment.finetune
        if finetune is None:
            return programs.initialise(seed), Clock()
        base = read_base(finetune, self.experiment, programs.model, programs.mesh)
        self.log.say(f"starts from step {finetune.base_step} of {finetune.base}")
        return programs.initialise(seed, *base), Clock()

    def _require_best(self, clock: Clock, checkpoints: Checkpoints) -> None:
        """The best checkpoint stays; one that was lost with damaged newer ones is said to be."""
        if clock.best is None:
            return
        if clock.best.step not in checkpoints.steps():
            self.log.say(
                f"WARNING: the best checkpoint so far, of step {clock.best.step}, is gone; the "
                "best of the coming evaluations is kept"
            )
            clock.best = None
        else:
            checkpoints.best = clock.best.step

    def _cut_metrics(self, clock: Clock) -> None:
        kept = truncate(self.run_dir.metrics, clock.step, clock.evaluated_step)
        if kept != clock.metrics_lines:
            raise StorageError(
                f"{self.run_dir.metrics}: holds {kept} lines up to step {clock.step}, but the "
                f"checkpoint was saved with {clock.metrics_lines}; restore the file, or use a "
                "new --workdir"
            )

    def _compiled(self, model: Any) -> Programs:
        self.progress.phase("compiling")
        compiled = compile_programs(self.experiment, model)
        seconds = compiled.seconds
        self.log.say(
            f"compiled the train step in {seconds['train_step']:.1f} s, evaluation in "
            f"{seconds['eval_step']:.1f} s, initialisation in {seconds['initialise']:.1f} s"
        )
        for name, size in compiled.temporary.items():
            self.log.record(f"{name} needs {size / 2**20:.1f} MiB of temporary memory on a device")
        if compiled.mesh is not None:
            self.log.say(describe_mesh(compiled))
        self.status.set()
        return compiled

    def _sinks(self, clock: Clock) -> tuple[list[Sink], Record]:
        config, run_dir = self.experiment.log, self.run_dir
        if not run_dir.writes:
            return [], NoMetrics()
        sinks: list[Sink] = []
        if config.tensorboard:
            sinks.append(TensorBoard(run_dir.tensorboard, self.status.attempt, clock.step))
        if config.wandb != "off":
            sinks.append(self._wandb())
        metrics_file = MetricsFile(run_dir.metrics)
        return [metrics_file, *sinks], metrics_file

    def _wandb(self) -> WandB:
        config = self.experiment.log
        return WandB(
            self.run_dir.root,
            mode=config.wandb,
            project=config.wandb_project,
            name=self.experiment.name,
            config=self.plain,
        )
