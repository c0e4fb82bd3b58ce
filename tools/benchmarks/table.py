"""What a reader sees: rows as a Markdown table, and where they were measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tools.benchmarks.rows import Row

HEADER = (
    "case", "back end", "ratio", "{basis}", "spread", "wall", "min/min", "target", "verdict",
)  # fmt: skip
RIGHT = {3, 4, 5, 6}
BASES = {"cpu": "CPU time", "wall": "wall time"}
"""The time that a column of ratios is made of."""


def table(rows: Sequence[Row]) -> str:
    """A Markdown table that is also readable as it is."""
    basis = " or ".join(BASES[basis] for basis in sorted({row["basis"] for row in rows} or {"cpu"}))
    header = tuple(name.format(basis=basis) for name in HEADER)
    cells = [header, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(HEADER))]
    rule = [
        "-" * (width - 1) + (":" if index in RIGHT else "-") for index, width in enumerate(widths)
    ]
    lines = [cells[0], tuple(rule), *cells[1:]]
    return "\n".join(
        "| "
        + " | ".join(
            text.rjust(width) if index in RIGHT else text.ljust(width)
            for index, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    )


def _cells(row: Row) -> tuple[str, ...]:
    numbers = [_number(row[key]) for key in ("ratio", "wall_ratio", "min_ratio")]
    spread = f"{100 * row['spread']:.0f} %" if row["wall_ratio"] is not None else ""
    return (
        row["case"],
        row["backend"],
        row["metric"],
        numbers[0],
        spread,
        *numbers[1:],
        row["target"] or "",
        row["verdict"],
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def remarks(rows: Sequence[Row]) -> list[str]:
    """One line per reason or note, each with the rows that it speaks of."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["note"]:
            found.setdefault(row["note"], []).append(f"{row['case']} ({row['backend']})")
    return [
        f"{', '.join(dict.fromkeys(names)) if len(names) < 4 else f'{len(names)} rows'}: {note}"
        for note, names in found.items()
    ]


def shapes(rows: Sequence[Row]) -> list[str]:
    """One line per case: what it is."""
    found = {
        row["case"]: row["shape"]
        + {True: ", dropless", False: ", NOT dropless", None: ""}[row["dropless"]]
        for row in rows
        if row["shape"]
    }
    return [f"{case}: {shape}" for case, shape in found.items()]


def machine_line(machine: dict[str, Any], processes: int) -> str:
    """Processor, load, versions, allocator, threads."""
    versions = machine["packages"]
    named = [
        f"{name} {versions[name]}"
        for name in ("jax", "jaxlib", "torch", "transformers", "tokamax")
        if versions.get(name)
    ]
    threads = ""
    if "torch" in machine:
        threads = f"; torch {machine['torch']['threads']} threads"
    variables = ", ".join(f"{name}={value}" for name, value in machine["variables"].items())
    return (
        f"{machine['cores']} cores of {machine['cpu']}, load {machine['load'][0]:.1f} at the "
        f"start; {', '.join(named)}; allocator {machine['allocator']}{threads}"
        f"{'; ' + variables if variables else ''}; {processes} process"
        f"{'es' if processes != 1 else ''} per suite"
    )
