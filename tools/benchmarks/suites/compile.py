"""Seconds and memory that the programs of the LM suites cost before the first step.

Compiled once per process, without the cache on disk. Ratios are to the dense model's programs; the
seconds themselves stand in the notes and the file.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from tools.benchmarks import targets as t
from tools.benchmarks.context import Context
from tools.benchmarks.language_models import experiment, lowerings, shape_text
from tools.benchmarks.layers import unavailable
from tools.benchmarks.rows import Case, Workload, known, unknown

SECONDS = "compile time / dense model"
PROGRAMS = ("train_step", "eval_step")


def workload(context: Context) -> Workload:
    """Rows and notes; nothing is timed again."""
    with _without_cache():
        return _measured(context)


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """JAX decides once per process whether it has a cache, so that must be forgotten twice."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _measured(context: Context) -> Workload:
    work = Workload()
    dense = _compile(work, t.ANY, None)
    for backend in context.backends:
        reason = unavailable(backend)
        found = {} if reason else _compile(work, backend, backend)
        for program in PROGRAMS:
            case = Case(f"compile {program}, MoE", shape_text(experiment("tiles")), None)
            if reason:
                row = unknown(context.suite, case, backend, SECONDS, reason)
            else:
                ours, theirs = found[program], dense[program]
                row = known(
                    context.suite,
                    case,
                    backend,
                    SECONDS,
                    ours["cpu_s"] / theirs["cpu_s"],
                    wall_ratio=ours["wall_s"] / theirs["wall_s"],
                ) | {"note": f"{_words(ours)}; the dense model {_words(theirs)}"}
            work.rows.append(row)
    return work


def _compile(work: Workload, name: str, backend: str | None) -> dict[str, dict[str, float]]:
    """Traces, lowers and compiles the programs of a model."""
    lower = lowerings(experiment(backend)).lower
    found = {}
    for program in PROGRAMS:
        wall, cpu = time.perf_counter(), time.process_time()
        compiled: Any = lower[program]().compile()
        memory = compiled.memory_analysis()
        found[program] = {
            "wall_s": time.perf_counter() - wall,
            "cpu_s": time.process_time() - cpu,
            "temp_mib": memory.temp_size_in_bytes / 2**20,
            "argument_mib": memory.argument_size_in_bytes / 2**20,
        }
        work.notes[f"{program}: {name}"] = found[program]
    return found


def _words(found: dict[str, float]) -> str:
    return f"{found['cpu_s']:.1f} s of CPU time, {found['temp_mib']:.0f} MiB temporary"
