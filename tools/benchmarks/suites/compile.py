"""Seconds and memory that the programs of the LM suites cost before the first step.

Measured once per process with an empty compile cache, and never a ratio between machines: its rows
are seconds over those of the dense model's train step.
"""

from __future__ import annotations

import jax

from tools.benchmarks import targets as t
from tools.benchmarks.context import Context
from tools.benchmarks.language_models import experiment, shape_text
from tools.benchmarks.layers import unavailable
from tools.benchmarks.rows import Case, Workload, known, unknown

SECONDS = "compile seconds / dense model"


def workload(context: Context) -> Workload:
    """Nothing to time again: rows and notes."""
    from moejax.train.programs import compile_programs

    work = Workload()
    jax.config.update("jax_enable_compilation_cache", False)
    yardstick: dict[str, float] = {}
    for backend in (None, *context.backends):
        made = experiment(None if backend in (None, *_absent(context)) else backend)
        kind = "dense" if backend is None else "MoE"
        case = Case("compile, MoE", shape_text(made), None)
        if backend is not None and (reason := unavailable(backend)):
            work.rows.append(unknown(context.suite, case, backend, SECONDS, reason))
            continue
        programs = compile_programs(made)
        name = backend or "dense"
        for program, seconds in programs.seconds.items():
            memory = getattr(programs, program).memory_analysis()
            work.notes[f"{name}: {program}"] = {
                "seconds": seconds,
                "temp_mib": memory.temp_size_in_bytes / 2**20,
                "argument_mib": memory.argument_size_in_bytes / 2**20,
                "output_mib": memory.output_size_in_bytes / 2**20,
            }
        yardstick = yardstick or programs.seconds
        for program, seconds in programs.seconds.items():
            row = known(
                context.suite,
                Case(f"compile {program}, {kind}", shape_text(made), None),
                backend or t.ANY,
                SECONDS,
                seconds / yardstick[program],
            )
            temp = work.notes[f"{name}: {program}"]["temp_mib"]
            work.rows.append(row | {"note": f"{seconds:.1f} s, {temp:.0f} MiB temporary"})
    return work


def _absent(context: Context) -> list[str]:
    return [backend for backend in context.backends if unavailable(backend)]
