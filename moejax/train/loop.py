"""The training loop: dispatch step t+1, then look at the metrics of step t."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import Any

import jax
import numpy as np

from moejax.sharding import Rows
from moejax.train.checkpoint import Checkpoints
from moejax.train.clock import Best, Clock
from moejax.train.errors import NonFiniteError
from moejax.train.evaluate import Evaluation, Evaluator, measured
from moejax.train.experiment import Experiment
from moejax.train.flops import FlopsMeter
from moejax.train.log import RunLog, Sink
from moejax.train.mirror import Mirror
from moejax.train.outcome import finetune_record
from moejax.train.profile import Profiler
from moejax.train.programs import Programs
from moejax.train.progress import Progress, StepReport
from moejax.train.rundir import FORMAT_VERSION, RunDir, Status
from moejax.train.sinks.jsonl import Record
from moejax.train.state import TrainState
from moejax.train.step import model_inputs
from moejax.train.votes import Votes

_FLUSH_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A step that was dispatched and whose metrics are still on the device."""

    step: int
    metrics: dict[str, Any]
    ballot: Any


@dataclasses.dataclass
class Loop:
    """One attempt's loop; `clock` is where it stands and is saved with every checkpoint."""

    experiment: Experiment
    run_dir: RunDir
    model: Any
    programs: Programs
    evaluator: Evaluator
    stream: Any
    rows: Rows
    checkpoints: Checkpoints
    metrics_file: Record
    sinks: list[Sink]
    meter: FlopsMeter
    peak: tuple[float, str]
    status: Status
    log: RunLog
    mirror: Mirror
    progress: Progress
    stop: Votes
    profiler: Profiler
    clock: Clock

    def __post_init__(self) -> None:
        experiment = self.experiment
        self._total = experiment.total_steps
        self._eval_every = experiment.steps_of(
            experiment.evaluation.every, "config.evaluation.every"
        )
        self._save_every = experiment.steps_of(
            experiment.checkpoint.every, "config.checkpoint.every"
        )
        self._saved_at = self._mark = self._flushed = time.perf_counter()
        self._final: Evaluation | None = None

    def run(self, state: TrainState) -> dict[str, Any]:
        """Trains to the end and returns the content of final.json.

        Raises:
          NonFiniteError: a step's loss or gradient was not finite.
          StorageError: a checkpoint, or the mirror beside it, could not be written.
          Interrupted: a signal asked for a stop; the state is saved unless no step was done.
        """
        if self._evaluation_due(self.clock.step) and self.clock.evaluated_step < self.clock.step:
            self._evaluate(state)
            if self._is_best():
                self._save(state)
        if self.stop.requested:
            self._save_and_stop(state)
        if self.clock.step < self._total and not self._gave_up():
            state = self._train(state)
        return self._finish(state)

    def _train(self, state: TrainState) -> TrainState:
        self.progress.phase("training")
        if self.profiler.missed(self.clock.step):
            self.log.say("the steps to profile are done already; no profile is written")
        self._mark = time.perf_counter()
        pending: _Pending | None = None
        with contextlib.closing(self.stream.iterate(self.clock.step, self.rows.mine)) as batches:
            for done, batch in batches:
                number = done + 1
                self.profiler.before(number)
                inputs = self.rows.put(model_inputs(batch))
                state, metrics = self.programs.train_step(state, inputs)
                ballot = self.stop.cast(self._overdue(), metrics)
                if pending is not None:
                    self._account(pending)
                pending = _Pending(number, metrics, ballot)
                if self.profiler.after(number, metrics):
                    self.log.say(
                        f"profile of steps up to {number} written to {self.run_dir.profile}"
                    )
                if self._must_pause(number):
                    # A step that goes to disk or is evaluated must be known to be finite first.
                    self._account(pending)
                    pending = None
                    self._pause(state)
                    self._mark = time.perf_counter()
                if number == self._total or self._gave_up():
                    break
        return state

    def _is_best(self) -> bool:
        """Whether the state of this step is the one to keep."""
        best = self.clock.best
        return best is not None and best.step == self.clock.step

    def _gave_up(self) -> bool:
        """Whether evaluations have not improved for so long that the run stops early. Their
        numbers are the same in all processes, so that all of them stop."""
        finetune, best = self.experiment.finetune, self.clock.best
        patience = 0 if finetune is None else finetune.patience
        return best is not None and 0 < patience <= best.since

    def _must_pause(self, number: int) -> bool:
        return (
            self.stop.requested
            or number == self._total
            or self._evaluation_due(number)
            or self._save_due(number)
        )

    def _pause(self, state: TrainState) -> None:
        """Between two steps: stop, evaluate, save."""
        step = self.clock.step
        if self.stop.requested:
            self._save_and_stop(state)
        if self._evaluation_due(step):
            self._evaluate(state)
        if step < self._total and (self._save_due(step) or self._is_best()):
            self._save(state)

    def _evaluation_due(self, step: int) -> bool:
        if step == 0:
            return self.experiment.evaluation.at_start
        return step == self._total or step % self._eval_every == 0

    def _save_due(self, step: int) -> bool:
        return step % self._save_every == 0 or self.stop.overdue

    def _overdue(self) -> bool:
        minutes = self.experiment.checkpoint.minutes
        return minutes > 0 and time.perf_counter() - self._saved_at >= 60 * minutes

    def _account(self, pending: _Pending) -> None:
        """Fetches a step's metrics, moves the clock, and writes the metrics line."""
        metrics = jax.device_get(pending.metrics)
        self.stop.count(pending.ballot)
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        clock = self.clock
        clock.step = pending.step
        tokens = int(metrics["_tokens"])
        clock.tokens += tokens
        flops = tokens * self.meter.per_token(self._active_width(metrics))
        clock.flops += flops
        clock.seconds += seconds
        speed = tokens / seconds
        utilisation = flops / seconds / self.peak[0]
        finite = bool(metrics["finite"])
        if not finite or clock.step % self.experiment.log.every == 0 or clock.step == self._total:
            line: dict[str, Any] = {"step": clock.step, "tokens": clock.tokens}
            for key in sorted(metrics):
                if not key.startswith("_") and key != "finite":
                    line[f"train/{key}"] = float(metrics[key])
            line["compute/flops"] = clock.flops
            line["perf/tokens_per_second"] = speed
            line["perf/step_seconds"] = seconds
            line["perf/mfu"] = utilisation
            self._write(line)
        if not finite:
            self._fail(metrics)
        loss = float(metrics["loss"])
        self.progress.step(StepReport(clock.step, loss, speed, seconds, utilisation, self.peak[1]))
        self.status.beat(clock.step)
        self.checkpoints.check()

    def _active_width(self, metrics: dict[str, Any]) -> np.ndarray:
        return np.asarray(self.model.host_routing(metrics)["active_width_L"], np.float64)

    def _write(self, line: dict[str, Any]) -> None:
        line["time/elapsed"] = self.clock.seconds
        line["time/unix"] = time.time()
        for sink in self.sinks:
            sink.write(line)
        now = time.perf_counter()
        if now - self._flushed >= _FLUSH_SECONDS:
            self.metrics_file.flush()
            self._flushed = now

    def _fail(self, metrics: dict[str, Any]) -> None:
        """Flushes and ends the run. The device has kept the state from before this step."""
        for sink in self.sinks:
            sink.flush()
        self.metrics_file.sync()
        self.status.beat(self.clock.step)
        self.log.record(
            f"step {self.clock.step}: loss {float(metrics['loss'])}, total loss "
            f"{float(metrics['total_loss'])}, gradient norm {float(metrics['grad_norm'])}"
        )
        raise NonFiniteError(f"non-finite at step {self.clock.step}")

    def _evaluate(self, state: TrainState) -> None:
        """Evaluates and writes line, routing and trace; a stop abandons it without a trace."""
        self.progress.phase("evaluating")
        evaluation = self.evaluator.run(state, self.stop)
        if evaluation is None:
            self._save_and_stop(state)
            return
        step = self.clock.step
        self.run_dir.write_arrays(self.run_dir.routing(step), evaluation.routing)
        if evaluation.trace is not None:
            self.run_dir.write_arrays(self.run_dir.trace(step), evaluation.trace)
        line: dict[str, Any] = {"step": step, "tokens": self.clock.tokens, **evaluation.metrics}
        line["compute/flops"] = self.clock.flops
        line["perf/eval_seconds"] = evaluation.seconds
        self._write(line)
        self.clock.evaluated_step = step
        self._final = evaluation
        self._compare(evaluation)
        self.log.record(f"step {step}: validation loss {evaluation.metrics['eval/loss']:.4f}")
        self.status.set(step=step)
        self.progress.phase("training")

    def _compare(self, evaluation: Evaluation) -> None:
        """Remembers the best evaluation, whose checkpoint is kept."""
        finetune, clock = self.experiment.finetune, self.clock
        if finetune is None or not finetune.keep_best:
            return
        loss = evaluation.metrics["eval/loss"]
        best = clock.best
        clock.best = Best(clock.step, loss) if best is None else best.after(clock.step, loss)
        self.checkpoints.best = clock.best.step

    def _save(self, state: TrainState) -> None:
        """Metrics to disk first, then the state: a checkpoint never knows more than the record."""
        for sink in self.sinks:
            sink.flush()
        self.metrics_file.sync()
        self.mirror.commit()
        self.clock.metrics_lines = self.metrics_file.lines
        self.checkpoints.save(state, self.clock)
        self._saved_at = time.perf_counter()
        self.stop.saved()

    def _save_and_stop(self, state: TrainState) -> None:
        step = self.clock.step
        if step == 0:
            raise self.stop.error("stopped before the first step; nothing to save")
        if step not in self.checkpoints.steps():
            self.progress.phase("saving")
            self._save(state)
            self.checkpoints.wait()
        raise self.stop.error(f"state saved at step {step}; the same command resumes")

    def _finish(self, state: TrainState) -> dict[str, Any]:
        evaluation = self._final
        if evaluation is None or self.clock.step != self.clock.evaluated_step:
            # The process died between the last checkpoint and final.json; the line is there.
            self.progress.phase("evaluating")
            evaluation = self.evaluator.run(state, self.stop)
            if evaluation is None:
                self._save_and_stop(state)
        assert evaluation is not None
        clock = self.clock
        scores = {key.removeprefix("eval/"): value for key, value in evaluation.metrics.items()}
        final = {
            "format_version": FORMAT_VERSION,
            "step": clock.step,
            "tokens": clock.tokens,
            "eval": scores,
            "measured": measured(self.meter, evaluation),
            "compute": {"flops": clock.flops},
            "time": {"elapsed": clock.seconds},
        }
        if self.experiment.finetune is not None:
            final["finetune"] = self._outcome(state)
        self.run_dir.write_json(self.run_dir.final, final)
        if clock.step not in self.checkpoints.steps():
            self._save(state)
        self.progress.phase("saving")
        self.checkpoints.wait()
        self.metrics_file.sync()
        self.status.set(state="done", step=clock.step, reason="", exit_code=0)
        return final

    def _outcome(self, state: TrainState) -> dict[str, Any]:
        """What final.json says of a fine-tuning; what it is about is on the disk before."""
        self.progress.phase("saving")
        if self.clock.step not in self.checkpoints.steps():
            self._save(state)
        self.checkpoints.wait()
        self.metrics_file.sync()
        return finetune_record(
            self.experiment,
            self.programs,
            self.checkpoints,
            self.run_dir,
            state,
            self.clock,
            early=self._gave_up() and self.clock.step < self._total,
        )
