"""Where the numbers come from: commands, versions, git state, and the knobs that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moejax.analysis import text
from moejax.analysis.runs import Run

MAX_KEYS = 5000
ABSENT, SECTION = "–", "set"


def flat_config(run: Run) -> dict[str, str]:
    """The resolved config as dotted key -> shown value: no secrets, at most `MAX_KEYS` keys."""
    found: dict[str, str] = {}
    node = run.config.get("config")
    _flatten(node if isinstance(node, dict) else {}, "", found)
    return found


def _flatten(
    node: Mapping[str, object], prefix: str, found: dict[str, str], depth: int = 0
) -> None:
    for key in sorted(node):
        value = node[key]
        path = f"{prefix}.{key}" if prefix else key
        if len(found) >= MAX_KEYS:
            return
        if isinstance(value, dict) and value and depth < 20:
            _flatten(value, path, found, depth + 1)
        else:
            found[text.clean(path, 200)] = text.clean(_shown(text.redact(path, value)), 200)


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return ", ".join(_shown(v) for v in value[:64])
    return f"{value:g}" if isinstance(value, float) else str(value)


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(key, value per run) where not all runs that have a config agree.

    A section that some runs lack (`model.moe` of a dense model) is one row of its own; its keys are
    listed only where the runs that have the section differ in them.
    """
    flats = [flat_config(run) for run in runs]
    present = [flat for flat, run in zip(flats, runs, strict=True) if run.config]
    sections = [_sections(flat) for flat in present]
    keys = sorted({key for flat in present for key in flat})
    rows = []
    for key in keys:
        parent = key.rpartition(".")[0]
        having = [
            flat.get(key, ABSENT)
            for flat, own in zip(present, sections, strict=True)
            if key in flat or parent in own
        ]
        if len(set(having)) > 1 or any(key in own for own in sections):
            rows.append((key, [_value(flat, key) if flat else "" for flat in flats]))
    return rows


def _sections(flat: Mapping[str, str]) -> set[str]:
    """Every prefix of the keys: `a` and `a.b` of `a.b.c`, and "" itself."""
    found = {""}
    for key in flat:
        while key := key.rpartition(".")[0]:
            found.add(key)
    return found


def _value(flat: Mapping[str, str], key: str) -> str:
    """The value; else whether the key is a whole section of other keys or is not there at all."""
    return flat.get(key, SECTION if key in _sections(flat) else ABSENT)


def origin(run: Run) -> dict[str, str]:
    """Path, config hash, code, versions, machine and command of one run, for people."""
    env = run.env
    return {
        "path": run.path,
        "config hash": run.config.string("hash"),
        "git": _git(run),
        "python": env.string("python"),
        "versions": _pairs(env.get("packages") or env.get("versions")),
        "platform": " ".join(
            word
            for key in ("platform", "devices", "cores", "machine")
            if (word := _word(key, env.get(key)))
        ),
        "tokenizer": _hash(run, "tokenizer"),
        "text": _hash(run, "manifest"),
        "attempts": text.clean(run.status.get("attempt")) if run.status.get("attempt") else "",
        "command": command(env.get("argv")),
    }


def command(argv: object) -> str:
    """A command line as one line, without secrets."""
    if isinstance(argv, str):
        argv = argv.split()
    if not isinstance(argv, list | tuple):
        return ""
    words = [text.redact_argument(word) for word in argv[:200] if isinstance(word, str)]
    return text.clean(" ".join(words), 2000)


def _git(run: Run) -> str:
    git = run.env.get("git")
    sha, dirty = (git.get("sha"), git.get("dirty")) if isinstance(git, dict) else (git, None)
    sha = run.env.get("git_sha") if sha is None else sha
    dirty = run.env.get("git_dirty") if dirty is None else dirty
    if not isinstance(sha, str) or not sha:
        return "no git"
    return text.clean(sha[:12]) + (" + uncommitted changes" if dirty else "")


def _pairs(value: object) -> str:
    if not isinstance(value, dict):
        return ""
    return text.clean(", ".join(f"{k} {v}" for k, v in sorted(value.items()) if v), 400)


def _word(key: str, value: object) -> str:
    if isinstance(value, dict):
        value = ", ".join(f"{k} {v}" for k, v in list(value.items())[:4])
    if isinstance(value, list):
        distinct = sorted({text.clean(v, 40) for v in value[:1000]})
        value = f"{len(value)} x {text.listing(distinct, 2)}" if distinct else ""
    if value in (None, ""):
        return ""
    return f"{text.clean(value, 80)} cores" if key == "cores" else text.clean(value, 80)


def _hash(run: Run, what: str) -> str:
    name = run.data.string("tokenizer" if what == "tokenizer" else "corpus")
    digest = run.data.string(f"{what}_hash")[:12]
    return " ".join(word for word in (name, f"({digest})" if digest else "") if word)
