"""Reports of `moejax.train.aot` for people: one report, a ranking, and the table of pods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from moejax.sharding.topology import GIB
from moejax.train.aot_search import Candidate

Report = Mapping[str, Any]


def print_report(report: Report, console: Console) -> None:
    """Everything about one experiment on one machine."""
    table = Table(title=_title(report), show_header=False, title_justify="left", min_width=72)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(report):
        table.add_row(name, value)
    console.print(table)
    if report["collectives"]:
        console.print(_collectives(report))
    for problem in report["problems"]:
        console.print(f"[red]problem[/red] {_plain(problem)}", soft_wrap=True)
    for note in report["notes"]:
        console.print(f"note    {_plain(note)}", soft_wrap=True)


def _title(report: Report) -> str:
    return f"{report['name']} on {report['topology']} ({report['chips']} chips)"


def _rows(report: Report) -> Iterable[tuple[str, str]]:
    hbm, state, memory = report["hbm"], report["state_bytes"], report["memory"]
    mesh = " x ".join(f"{axis}={size}" for axis, size in report["mesh"].items() if size > 1)
    count = report["parameters"]
    yield "mesh", f"{mesh or 'one device'}; remat {report['remat']}"
    yield (
        "step",
        f"{report['tokens_per_step']:,} tokens of {count['total']:.4g} parameters, "
        f"{count['active']:.4g} active",
    )
    yield (
        "state per chip",
        f"parameters {_gib(state['parameters'])}, optimizer {_gib(state['optimizer'])}",
    )
    if memory:
        yield (
            "memory per chip",
            f"arguments {_gib(memory['argument'])}, temporaries {_gib(memory['temp'])}, "
            f"peak {_gib(memory['peak'])}",
        )
    verdict = "fits" if report["fits"] else "DOES NOT FIT"
    yield (
        "verdict",
        f"{verdict}: {_gib(hbm['used'])} of {_gib(hbm['chip'])} ({hbm['fraction']:.0%})",
    )
    rows = report["rows"]
    if rows:
        room = [f"{rows['balanced']:,.0f} balanced"]
        if rows["exchanged"]:
            room.append(f"{rows['exchanged']:,} exchanged ({rows['overflow']} on overflow)")
        if rows.get("compiled"):
            times = rows["compiled"] / max(1, rows["balanced"])
            room.append(f"room for {rows['compiled']:,.0f} ({times:.1f} x)")
        yield "expert rows per chip", ", ".join(room)
    yield "model FLOPs per step", f"{report['model_flops_per_step']:.4g} (all chips)"
    flops = report["flops"]
    if flops:
        expected = sum(report["executed_flops"].values())
        yield (
            "FLOPs per chip",
            f"compiled {flops['total']:.4g} (products {flops['products']:.4g}, kernels "
            f"{flops['kernels_balanced'] + flops['kernels_assumed']:.4g}), analytic "
            f"{expected:.4g}: {flops['ratio']:.3f} x",
        )
    line = report["roofline"]
    if line:
        parts = ", ".join(
            f"{name} {line[name] * 1e3:.4g}" for name in ("compute", "hbm", "ici", "dcn")
        )
        yield "roofline (ms)", f"{parts}; limit: {line['limit']}"
        yield (
            "predicted step",
            f"{line['step_seconds'] * 1e3:.4g} ms if communication overlaps, "
            f"{line['step_seconds_serial'] * 1e3:.4g} ms if it does not",
        )
        yield "predicted MFU", f"{line['mfu_serial']:.1%} to {line['mfu']:.1%}"
    seconds = report["seconds"]
    cached = " (from the cache)" if report.get("cached") else ""
    yield "compiled in", f"{seconds['compile']:.1f} s, lowered in {seconds['lower']:.1f} s{cached}"


def _collectives(report: Report) -> Table:
    table = Table(title="collectives per step and chip", title_justify="left", min_width=72)
    for name in ("kind", "devices", "network", "runs", "MiB", "ms"):
        table.add_column(name, justify="left" if name in ("kind", "network") else "right")
    for row in report["collectives"]:
        table.add_row(
            row["kind"],
            str(row["devices"]),
            "DCN" if row["slow"] else "ICI",
            f"{row['runs']:,.0f}",
            f"{row['bytes'] / 2**20:,.1f}",
            f"{row['seconds'] * 1e3:,.3f}",
        )
    return table


def print_ranking(candidates: Sequence[Candidate], console: Console, most: int = 12) -> None:
    """The first of a search's candidates, with their estimates."""
    table = Table(
        title=f"{len(candidates)} candidates by arithmetic, the first {min(most, len(candidates))}",
        title_justify="left",
    )
    for name in ("mesh", "remat", "accumulate", "GiB", "fits", "limit", "ms", "MFU"):
        table.add_column(name, justify="right" if name in ("GiB", "ms", "MFU") else "left")
    for one in candidates[:most]:
        sizes = zip(("data", "fsdp", "expert", "tensor"), one.mesh.sizes, strict=True)
        table.add_row(
            ",".join(f"{axis}={size}" for axis, size in sizes),
            one.remat,
            str(one.accumulate),
            f"{one.bytes / GIB:.1f}",
            "yes" if one.fits else "no",
            one.time.limit,
            f"{one.step_seconds * 1e3:.4g}",
            f"{one.mfu:.1%}",
        )
    console.print(table)


def pod_table(reports: Sequence[Report]) -> str:
    """The README's table, in Markdown."""
    lines = [
        "| model | parameters (active) | machine | mesh | tokens per step | HBM per chip | "
        "compiled / analytic FLOPs | predicted MFU | limit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        mesh = " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items() if size > 1)
        count, hbm, line = report["parameters"], report["hbm"], report["roofline"]
        used = f"{hbm['used'] / GIB:.1f} of {hbm['chip'] / GIB:.0f} GiB"
        used += "" if report["fits"] else " (does not fit)"
        mfu = f"{line['mfu_serial']:.0%} to {line['mfu']:.0%}" if line else ""
        ratio = f"{report['flops']['ratio']:.3f}" if report["flops"] else ""
        lines.append(
            f"| {report['name']} | {_short(count['total'])} ({_short(count['active'])}) | "
            f"{report['topology']} | {mesh} | {report['tokens_per_step']:,} | {used} | "
            f"{ratio} | {mfu} | {line['limit'] if line else ''} |"
        )
    return "\n".join(lines)


def _short(number: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.3g} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / 2**20:.3g} MiB"


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
