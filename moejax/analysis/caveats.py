"""What the numbers do not allow to say, and notes that need all runs to see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from moejax.analysis import metrics as m
from moejax.analysis import text
from moejax.analysis.runs import Note
from moejax.analysis.seeds import seed_groups
from moejax.analysis.view import View


def caveats(runs: Sequence[View]) -> list[str]:
    """Honest limits of this comparison, found in the data."""
    found = (_unfinished, _tokens, _text, _shape, _seeds, _evaluation)
    return [sentence for check in found if (sentence := check(runs))]


def _seeds(runs: Sequence[View]) -> str:
    """The noise floor, from finished runs that differ in nothing but their seed."""
    groups = [[view.summary.loss for view in group.runs] for group in seed_groups(runs)]
    repeated = [losses for losses in groups if len(losses) > 1]
    if repeated:
        spread = max(max(losses) - min(losses) for losses in repeated)
        return (
            f"Runs that differ only in their seed differ by up to {spread:.3f} nats per token: "
            "smaller differences between configurations may be chance. "
            "The ranking is over single runs; the table of seeds has their means."
        )
    what = "This run has" if len(runs) == 1 else "Every configuration was trained with"
    return (
        f"{what} one seed: how much the loss would move with another seed is unknown, so a small "
        "difference may be chance."
    )


def _unfinished(runs: Sequence[View]) -> str:
    parts = [
        f"{v.name} ({v.summary.state}"
        + (f" at step {int(v.summary.steps):,}" if math.isfinite(v.summary.steps) else "")
        + ")"
        for v in runs
        if v.summary.state != "done"
    ]
    return f"Not finished, so its numbers are those so far: {text.listing(parts)}." if parts else ""


def _tokens(runs: Sequence[View]) -> str:
    tokens = [v.summary.tokens for v in runs if math.isfinite(v.summary.tokens)]
    if len(set(tokens)) < 2 or max(tokens) < 1.01 * min(tokens):
        return ""
    at = min(tokens)
    losses = [
        (v, m.value_at(v.run.metrics.eval["tokens"], v.run.metrics.eval["eval/loss"], at))
        for v in runs
        if v.comparable
    ]
    known = sorted(
        ((loss, v.name) for v, loss in losses if math.isfinite(loss)), key=lambda p: p[0]
    )
    sentence = (
        f"The runs saw different numbers of tokens ({text.short(min(tokens))} to "
        f"{text.short(max(tokens))}): compare curves, not only final losses."
    )
    if len(known) > 1:
        sentence += (
            f" At {text.short(at)} tokens the lowest loss is {known[0][1]}'s, {known[0][0]:.3f}."
        )
    return sentence


def _text(runs: Sequence[View]) -> str:
    other = [v.name for v in runs if not v.comparable]
    if not other:
        return ""
    return (
        f"Other or unknown text or tokenizer than most: {text.listing(other)}. "
        "Losses per token of these do not compare with the rest and are left out of the ranking."
    )


def _shape(runs: Sequence[View]) -> str:
    sizes = {v.name: v.summary.nominal_active for v in runs if v.summary.nominal_active > 0}
    if len(sizes) < 2 or max(sizes.values()) < 1.1 * min(sizes.values()):
        return ""
    return (
        f"The models' nominal active parameters differ ({text.short(min(sizes.values()))} to "
        f"{text.short(max(sizes.values()))}): compare against FLOPs too."
    )


def comparison_notes(runs: Sequence[View]) -> list[Note]:
    """Per-run notes that need the other runs to see."""
    notes = []
    most = max(
        (v.summary.tokens for v in runs if math.isfinite(v.summary.tokens)), default=math.nan
    )
    for view in runs:
        name, summary = view.name, view.summary
        if not view.comparable:
            what = "manifest or tokenizer differs from most runs: not ranked by loss per token"
            notes.append(Note(name, "warning", "data.json", what))
        if summary.tokens < 0.99 * most:
            what = f"saw {text.short(summary.tokens)} tokens, the longest run {text.short(most)}"
            notes.append(Note(name, "note", "metrics.jsonl", what))
        if not math.isfinite(summary.loss):
            what = "no finite validation loss: shown, but not ranked"
            notes.append(Note(name, "warning", "metrics.jsonl", what))
        notes.extend(_state_notes(view))
    return notes


def _state_notes(view: View) -> list[Note]:
    status, state = view.run.status, view.summary.state
    if state == "done":
        return []
    reason = status.string("reason")
    beat = status.number("heartbeat")
    what = {
        "running": "still running",
        "unknown": "its state is unknown",
    }.get(state, state) + (f": {reason}" if reason else "")
    if 0 < beat < 32503680000:  # before the year 3000: anything else is not a time
        when = datetime.fromtimestamp(beat, UTC).strftime("%Y-%m-%d %H:%M:%S")
        what += f" (last sign of life {when} UTC)"
    return [Note(view.name, "warning", "status.json", what)]


def _evaluation(runs: Sequence[View]) -> str:
    sizes = {n for v in runs if math.isfinite(n := v.run.metrics.eval.last("eval/tokens"))}
    if not sizes:
        return ""
    shown = " to ".join(text.short(n) for n in sorted({min(sizes), max(sizes)}))
    return (
        f"Validation loss is measured on {shown} tokens of one text; other text may rank the runs "
        "differently."
    )
