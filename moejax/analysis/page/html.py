"""HTML that is safe by construction: text is escaped unless it is already `Html`."""

from __future__ import annotations

from collections.abc import Iterable

from moejax.analysis import text

_VOID = {"meta", "br"}


class Html(str):
    """A finished piece of markup. Only this module and `svg` make it, from escaped parts."""

    __slots__ = ()


def el(name: str, *children: object, **attributes: object) -> Html:
    """An element. Children that are not `Html` are escaped; None and "" are left out.

    Attributes: `cls` is class, `_` becomes `-`, True is a bare attribute, None and False leave out.
    """
    start = name
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = "class" if key == "cls" else key.strip("_").replace("_", "-")
        start += f" {attribute}" if value is True else f' {attribute}="{text.esc(value)}"'
    if name in _VOID:
        return Html(f"<{start}>")
    return Html(f"<{start}>{join(children)}</{name}>")


def join(parts: Iterable[object], separator: str = "") -> Html:
    """Pieces one after the other, each escaped unless it is `Html`; None is left out."""
    shown = [p if isinstance(p, Html) else text.esc(p) for p in parts if p is not None]
    return Html(separator.join(shown))


def raw(markup: str) -> Html:
    """Declares markup as finished. For constants and for the output of an XML serialiser only."""
    return Html(markup)
