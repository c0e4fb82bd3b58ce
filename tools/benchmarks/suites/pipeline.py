"""Tokens per second of the data stream, packing included, beside what the LM step consumes."""

from __future__ import annotations

from collections.abc import Callable

from moejax.data import TrainStream, prepare
from tools.benchmarks import targets as t
from tools.benchmarks.context import Context
from tools.benchmarks.language_models import Trainer, experiment, shape_text
from tools.benchmarks.rows import Case, Comparison, Workload
from tools.benchmarks.timing import Candidate

BATCHES = 32
"""Batches of a measured call: one is over too soon."""
AHEAD = "tokens/s / LM step"


def workload(context: Context) -> Workload:
    """The stream as the loop reads it (a thread builds ahead), and batch by batch."""
    del context
    work = Workload()
    made = experiment(None)
    dataset = prepare(made.data)
    stream = TrainStream(
        dataset, seed=0, batch_size=made.train.batch_size, seq_len=made.data.seq_len
    )
    consumer = work.time(Candidate("LM step, dense", Trainer(made).step))
    for label, read in (("stream, iterate", _ahead), ("stream, batch by batch", _one_by_one)):
        case = Case(label, f"B={made.train.batch_size} S={made.data.seq_len}", None)
        name = work.time(Candidate(label, read(stream), BATCHES))
        # Both handle the same number of tokens per call, so the ratio of times is that of rates.
        work.comparisons.append(Comparison(case, t.ANY, AHEAD, name, consumer))
    tokens = {"tokens_per_call": made.tokens_per_step}
    work.notes |= {candidate.name: tokens for candidate in work.candidates}
    work.notes["LM step, dense"] = tokens | {"model": shape_text(made)}
    return work


def _ahead(stream: TrainStream) -> Callable[[], None]:
    def run() -> None:
        for step, _ in stream.iterate():
            if step == BATCHES - 1:
                return

    return run


def _one_by_one(stream: TrainStream) -> Callable[[], None]:
    def run() -> None:
        for step in range(BATCHES):
            stream.batch(step)

    return run
