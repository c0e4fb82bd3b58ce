"""From files of a package to texts of about 4,000 characters: one function for each format."""

from __future__ import annotations

import ast
import bz2
import gzip
import html
import json
import re
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from moejax.config import ConfigError
from moejax.data.documents import decode, normalise, read_bytes
from moejax.data.evaluation.documents import one_line, pieces
from moejax.data.evaluation.packages import Files

# What a file of a package may hold once decompressed.
MAX_FILE_BYTES = 1 << 28


def modules(files: Files) -> Iterator[str]:
    """Python modules without the licence header that opens nearly every one of them."""
    for _, file in files:
        text = decode(read_bytes(file), str(file))
        head = re.match(r"\s*(#[^\n]*(\n|$))+\s*", text)
        if head and "copyright" in head[0].lower():
            text = text[head.end() :]
        yield from pieces(text, "\n\n\n")


def licences(files: Files) -> Iterator[str]:
    """Licence texts in English, without front matter and without a paragraph met before."""
    met: set[str] = set()
    for _, file in files:
        text = decode(read_bytes(file), str(file))
        matter = re.match(r"---\n(.*?\n)---(?:\n|$)", text, re.DOTALL)
        if matter is None:
            raise ConfigError(f"{file}: no front matter between lines of ---")
        if re.search(r"^language: (?!en\b)", matter[1], re.MULTILINE):
            continue
        yield from pieces("\n\n".join(_fresh(text[matter.end() :], met)))


def mathematics(files: Files) -> Iterator[str]:
    """Texts with formulas: the docstrings, and strings used as such, that hold LaTeX."""
    for _, file in files:
        raw = read_bytes(file)
        if not re.search(rb"\\[a-z]{2}", raw):
            continue  # parsing costs much more than looking
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of its escapes, which are not our business
                tree = ast.parse(raw)
        except (SyntaxError, ValueError, RecursionError) as error:
            raise ConfigError(f"{file}: is no Python ({one_line(str(error))})") from error
        for text in _strings(tree):
            if len(text) >= 400 and re.search(r"\\[a-z]{2}", text):
                yield from pieces(normalise(_dedent(text)))


def _strings(node: ast.AST) -> Iterator[str]:
    """Yields the strings that are statements, or assigned, of a module and what it defines."""
    for child in getattr(node, "body", ()):
        if isinstance(child, ast.Expr | ast.Assign) and isinstance(child.value, ast.Constant):
            if isinstance(child.value.value, str):
                yield child.value.value
        elif isinstance(child, ast.ClassDef | ast.FunctionDef):
            yield from _strings(child)


def services(files: Files) -> Iterator[str]:
    """What an API's description says of the service and of each operation, newest version only."""
    newest = {name.split("/")[2]: (name, file) for name, file in sorted(files)}
    met: set[str] = set()
    for _, file in newest.values():
        try:
            api = json.loads(_unpacked(file))
            texts = [api.get("documentation", "")]
            texts += [api["operations"][key].get("documentation", "") for key in api["operations"]]
            paragraphs = [
                one_line(html.unescape(re.sub(r"<[^>]*>", "", part)))
                for text in texts
                for part in re.split(r"</(?:p|li|dt|dd|h\d)>", text)
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{file}: is no description of a service ({error!r})") from error
        yield from pieces("\n\n".join(_fresh("\n\n".join(paragraphs), met, 80)))


def conversations(files: Files) -> Iterator[str]:
    """Conversations, a turn on each line, a blank line between; several to a text, none twice."""
    try:
        import yaml
    except ImportError as error:
        raise ConfigError(
            "the evaluation set needs the package 'PyYAML'; install it: pip install PyYAML"
        ) from error

    met: set[str] = set()
    for _, file in files:
        try:
            found = yaml.safe_load(decode(read_bytes(file), str(file)))["conversations"]
            turns = [[one_line(str(turn)) for turn in talk] for talk in found]
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{file}: holds no conversations ({one_line(repr(error))})"
            ) from error
        talks = "\n\n".join("\n".join(talk) for talk in turns)
        yield from pieces("\n\n".join(_fresh(talks, met)), size=2048)


def articles(files: Files) -> Iterator[str]:
    """Paragraphs of the articles of a Wikipedia dump, without markup, lists and tables."""
    for _, file in files:
        try:
            root = ElementTree.fromstring(_unpacked(file))
        except ElementTree.ParseError as error:
            raise ConfigError(f"{file}: is no XML ({error})") from error
        for page in root.iterfind("{*}page"):
            if page.findtext("{*}ns", "0") == "0" and page.find("{*}redirect") is None:
                text = page.findtext("{*}revision/{*}text") or ""
                yield from pieces("\n\n".join(plain_paragraphs(normalise(text))))


def plain_paragraphs(wikitext: str) -> list[str]:
    """Returns the paragraphs of running text of a page in wikitext."""
    text = re.sub(r"(?s)<!--.*?-->|<ref[^>]*/>|<(ref|gallery|math|table)\b.*?</\1>", "", wikitext)
    for inner in (r"\{\{[^{}]*\}\}", r"\{\|(?:(?!\{\||\|\}).)*\|\}"):
        for _ in range(20):  # innermost first
            text, count = re.subn(f"(?s){inner}", "", text)
            if not count:
                break
    for _ in range(5):
        text, count = re.subn(r"\[\[([^\[\]]*)\]\]", lambda link: _link(link[1]), text)
        if not count:
            break
    text = re.sub(r"\[\w+://\S+ ?([^\]]*)\]", r"\1", text)
    text = html.unescape(html.unescape(re.sub(r"<[^>]*>|'{2,}", "", text)))
    lines = (re.sub(r"[ \t\xa0]+", " ", line).strip() for line in text.split("\n"))
    return [line for line in lines if len(line) >= 80 and line[0] not in "*#:;=|!{}"]


def _link(inside: str) -> str:
    target = inside.split("|")[0]
    if re.match(r"\s*:?[\w -]+:\S", target):  # File:, Category:, another language
        return ""
    return inside.split("|")[-1]


def _fresh(text: str, met: set[str], least: int = 1) -> Iterator[str]:
    """Yields the paragraphs of a text that are long enough and were not met before."""
    for paragraph in text.split("\n\n"):
        key = one_line(paragraph)
        if len(key) >= least and key not in met:
            met.add(key)
            yield paragraph


def _dedent(text: str) -> str:
    lines = text.expandtabs().split("\n")
    margins = [len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()]
    margin = min(margins, default=0)
    return "\n".join([lines[0].strip(), *(line[margin:].rstrip() for line in lines[1:])])


def _unpacked(file: Path) -> bytes:
    """Returns the content of a .gz or .bz2 file; raises ConfigError if damaged or too large."""
    opener: Any = bz2.open if file.suffix == ".bz2" else gzip.open
    try:
        with opener(file) as stream:
            data: bytes = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = one_line(str(getattr(error, "strerror", None) or error))
        raise ConfigError(f"{file}: cannot be unpacked ({reason})") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{file}: unpacks to more than {MAX_FILE_BYTES:,} bytes")
    return data
