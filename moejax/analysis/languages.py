"""Which family, branch and script a language has: what similarities of routing are held against.

The languages of the labelled texts (`moejax.data.evaluation`: `languages`, `udhr`, tagged texts),
by the codes used there. Families and branches as in Glottolog and Ethnologue, at the level that
both share; `branch` is the first division that parts Germanic from Romance, Indic from Iranian.
Scripts by ISO 15924 names: those of the texts, not of all that is written in the language.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Language:
    """A language's name, family, branch of it, and script."""

    name: str
    family: str
    branch: str
    script: str


def _table(rows: str) -> dict[str, Language]:
    found = {}
    for row in rows.strip().splitlines():
        code, name, family, branch, script = (cell.strip() for cell in row.split("|"))
        found[code] = Language(name, family, branch, script)
    return found


LANGUAGES = _table(
    """
    en | English    | Indo-European | Germanic   | Latin
    de | German     | Indo-European | Germanic   | Latin
    nl | Dutch      | Indo-European | Germanic   | Latin
    sv | Swedish    | Indo-European | Germanic   | Latin
    fr | French     | Indo-European | Romance    | Latin
    es | Spanish    | Indo-European | Romance    | Latin
    pt | Portuguese | Indo-European | Romance    | Latin
    it | Italian    | Indo-European | Romance    | Latin
    ro | Romanian   | Indo-European | Romance    | Latin
    pl | Polish     | Indo-European | Slavic     | Latin
    cs | Czech      | Indo-European | Slavic     | Latin
    ru | Russian    | Indo-European | Slavic     | Cyrillic
    uk | Ukrainian  | Indo-European | Slavic     | Cyrillic
    el | Greek      | Indo-European | Hellenic   | Greek
    fa | Persian    | Indo-European | Iranian    | Arabic
    hi | Hindi      | Indo-European | Indic      | Devanagari
    bn | Bengali    | Indo-European | Indic      | Bengali
    fi | Finnish    | Uralic        | Finnic     | Latin
    hu | Hungarian  | Uralic        | Ugric      | Latin
    tr | Turkish    | Turkic        | Oghuz      | Latin
    he | Hebrew     | Afro-Asiatic  | Semitic    | Hebrew
    ar | Arabic     | Afro-Asiatic  | Semitic    | Arabic
    ta | Tamil      | Dravidian     | Tamil      | Tamil
    vi | Vietnamese | Austroasiatic | Vietic     | Latin
    tl | Tagalog    | Austronesian  | Philippine | Latin
    id | Indonesian | Austronesian  | Malayic    | Latin
    ko | Korean     | Koreanic      | Korean     | Hangul
    ja | Japanese   | Japonic       | Japanese   | Japanese
    zh | Chinese    | Sino-Tibetan  | Sinitic    | Han
    sw | Swahili    | Niger-Congo   | Bantu      | Latin
    yo | Yoruba     | Niger-Congo   | Yoruboid   | Latin
    """
)
GROUPINGS = ("family", "branch", "script")


def language_of(code: str) -> Language | None:
    """The language of a label: a code of the table, alone or with a region ("en-GB", "pt_BR")."""
    return LANGUAGES.get(code.lower().replace("_", "-").partition("-")[0])


def groups_of(codes: Sequence[str], grouping: str) -> tuple[str, ...]:
    """What each language is in one of `GROUPINGS`; "" where the table lacks it.

    Raises:
      ValueError: no such grouping.
    """
    if grouping not in GROUPINGS:
        raise ValueError(f"grouping {grouping!r}; one of {', '.join(GROUPINGS)}")
    found = [language_of(code) for code in codes]
    return tuple("" if one is None else str(getattr(one, grouping)) for one in found)


def in_order(codes: Sequence[str]) -> list[int]:
    """Indices of the languages, relatives side by side: in the table's order, unknown ones last."""
    known = list(LANGUAGES.values())
    place = [known.index(one) if (one := language_of(code)) else len(known) for code in codes]
    return sorted(range(len(codes)), key=lambda index: (place[index], index))
