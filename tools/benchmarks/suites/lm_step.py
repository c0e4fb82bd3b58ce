"""A whole optimiser step of a small language model, dense and MoE, against torch eager."""

from __future__ import annotations

from typing import Any

from moejax.models.attention import AttentionConfig
from moejax.train import Experiment
from tools.benchmarks import targets as t
from tools.benchmarks.context import Context
from tools.benchmarks.copies import TOLERANCE, lm_arrays
from tools.benchmarks.language_models import Trainer, batch, experiment, shape_text, with_model
from tools.benchmarks.layers import unavailable
from tools.benchmarks.rows import Case, Comparison, Workload, unknown
from tools.benchmarks.timing import Candidate

COMPARED = 2
"""Steps whose losses are compared: the second holds the gradients and optimisers to each other.
(From the third on, a router's ties that fall the other way show.) They also warm up."""
VARIANTS: dict[str, dict[str, Any]] = {
    "unrolled": {"scan": False},
    "remat=dots": {"remat": "dots"},
    "unrolled, remat=dots": {"scan": False, "remat": "dots"},
    "attention.backend=xla": {"attention": AttentionConfig(heads=4, backend="xla")},
    "loss_chunk=64": {"loss_chunk": 64},
}
"""Other ways to compute the dense model's step."""
DEFAULT = "speed / the default"


def workload(context: Context) -> Workload:
    """The dense step, and the MoE step by each back end."""
    work = Workload(warm_up=0)
    dense, _ = _plan(work, context, t.LM_DENSE, t.ANY, experiment(None))
    if not context.targets_only:
        for label, changes in VARIANTS.items():
            made = with_model(experiment(None), **changes)
            case = Case(f"{t.LM_DENSE}, {label}", shape_text(made), None)
            trainer = Trainer(made)
            for _ in range(COMPARED):
                trainer.step()
            name = work.time(Candidate(case.name, trainer.step))
            work.notes[name] = {"temp_mib": trainer.temp_mib}
            work.comparisons.append(Comparison(case, t.ANY, DEFAULT, name, dense))
    rival = ""
    for backend in context.backends:
        made = experiment(backend if backend in context.usable else "tiles")
        case = Case(t.LM_MOE, shape_text(made))
        if reason := unavailable(backend):
            work.rows += [
                unknown(context.suite, case, backend, metric, reason)
                for metric in (t.TORCH, t.DENSE_STEP)
            ]
            continue
        name, rival = _plan(work, context, t.LM_MOE, backend, made, rival)
        work.comparisons.append(Comparison(case, backend, t.DENSE_STEP, name, dense))
    return work


def _plan(
    work: Workload,
    context: Context,
    label: str,
    backend: str,
    made: Experiment,
    rival: str = "",
) -> tuple[str, str]:
    """Our step and torch's of one model; returns the name of ours, and `rival`.

    Args:
      rival: torch's step of the same model, or "!" and why there is none, where an earlier back end
        brought it along.
    """
    case = Case(label, shape_text(made), None if made.model.moe is None else True)
    trainer = Trainer(made)
    weights = lm_arrays(trainer.params) if context.peers else {}
    losses = [trainer.step() for _ in range(COMPARED)]
    name = work.time(Candidate(f"{label}: {backend}", trainer.step))
    work.notes[name] = {"temp_mib": trainer.temp_mib, "first_losses": losses}
    if not context.peers:
        rival = "!--no-peers"
    elif not rival:
        from tools.benchmarks.torch_lm import train_step

        step = train_step(made, weights, batch(made))
        theirs = [step() for _ in range(COMPARED)]
        peer = f"{label}: torch eager"
        work.notes[peer] = {"first_losses": theirs}
        wrong = _differ(losses, theirs)
        rival = f"!{wrong}" if wrong else work.time(Candidate(peer, step))
    if rival.startswith("!"):
        work.rows.append(unknown(context.suite, case, backend, t.TORCH, rival[1:]))
    else:
        work.comparisons.append(Comparison(case, backend, t.TORCH, name, rival))
    return name, rival


def _differ(ours: list[float], theirs: list[Any]) -> str:
    worst = max(abs(a - b) / abs(a) for a, b in zip(ours, theirs, strict=True))
    if worst <= TOLERANCE:
        return ""
    return f"mismatch with ours: losses of {len(ours)} steps differ by {worst:.1e}"
