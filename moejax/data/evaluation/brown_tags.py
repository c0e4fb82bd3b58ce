"""The Brown corpus: its genres, its tags as twelve parts of speech, its words as running text."""

from __future__ import annotations

import functools
from collections.abc import Iterator

LICENCE = "MIT (text: redistribution permitted)"
GENRES = {
    "a": "reportage",
    "b": "editorial",
    "c": "reviews",
    "d": "religion",
    "e": "hobbies",
    "f": "lore",
    "g": "belles-lettres",
    "h": "government",
    "j": "learned",
    "k": "fiction",
    "l": "mystery",
    "m": "science-fiction",
    "n": "adventure",
    "p": "romance",
    "r": "humor",
}
# The first entry that a tag begins with decides; longer ones stand before shorter ones.
_COARSE = (
    ("wdt", "DET"),
    ("wrb", "ADV"),
    ("wql", "ADV"),
    ("abl", "DET"),
    ("abn", "DET"),
    ("abx", "DET"),
    ("ap", "DET"),
    ("at", "DET"),
    ("be", "VERB"),
    ("cc", "CONJ"),
    ("cd", "NUM"),
    ("cs", "CONJ"),
    ("do", "VERB"),
    ("dt", "DET"),
    ("ex", "PRON"),
    ("hv", "VERB"),
    ("in", "ADP"),
    ("jj", "ADJ"),
    ("md", "VERB"),
    ("nil", "X"),
    ("nn", "NOUN"),
    ("np", "NOUN"),
    ("nr", "NOUN"),
    ("od", "ADJ"),
    ("pn", "PRON"),
    ("pp", "PRON"),
    ("ql", "ADV"),
    ("rb", "ADV"),
    ("rn", "ADV"),
    ("rp", "PRT"),
    ("to", "PRT"),
    ("uh", "X"),
    ("vb", "VERB"),
    ("wp", "PRON"),
    ("*", "PRT"),
)
_PUNCTUATION = {".", ",", ":", "(", ")", "--", "``", "''", "'"}
_CLOSING = {".", ",", ";", ":", "?", "!", ")", "''", "'"}
_OPENING = {"(", "``", "`"}
_DOUBLED = {";", "?", "!"}
_QUOTES = {"``": '"', "''": '"', "`": "'"}


@functools.cache
def coarse(tag: str) -> str:
    """Returns NOUN, VERB, ADJ, ADV, PRON, DET, ADP, NUM, CONJ, PRT, PUNCT or X for a tag.

    Suffixes of place (-tl title, -hl headline, -nc cited) do not count; of a contraction
    ("isn't", bez*; "I'm", ppss+bem) the first word does; foreign words are X.
    """
    plain = tag.lower()
    if plain in _PUNCTUATION or plain.split("-")[0] in _PUNCTUATION or plain.startswith("--"):
        return "PUNCT"
    return next((name for begin, name in _COARSE if plain.startswith(begin)), "X")


def spaced(sentence: list[tuple[str, str]]) -> Iterator[tuple[str, str, bool]]:
    """Yields (word, tag, whether a blank follows), quotes as people type them.

    The corpus has every ";", "?" and "!" twice; once is enough.
    """
    sentence = [
        pair
        for i, pair in enumerate(sentence)
        if not (pair[0] in _DOUBLED and pair in sentence[i - 1 : i])
    ]
    following_words = [word for word, _ in sentence[1:]] + [""]
    for (word, tag), following in zip(sentence, following_words, strict=False):
        yield _QUOTES.get(word, word), tag, word not in _OPENING and following not in _CLOSING
