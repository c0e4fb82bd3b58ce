"""Token classes: what a token is in the text it came from.

The class is read off the text itself, byte by byte, and never off the vocabulary: a string like
'Ġthe' says that a space was there when the vocabulary was trained, not that this token starts a
word here (the two disagree on 18 % of the tokens of a BPE model).

Definition. A *word* is a maximal run of letters and combining marks (Unicode L*, M*), in which an
apostrophe (' or U+2019) between two letters also counts as a letter. Each character is then
  word_start    the first character of a word
  continuation  any later character of a word
  digit         Unicode N*
  whitespace    what `str.isspace` says
  punctuation   Unicode P* and S* (so '_', '+' and '=' too)
  other         the rest: control and format characters, private use, unassigned
A token has the class of its first byte that is not whitespace, or `whitespace` if it has none. A
later byte of a multi-byte character has its character's class, but `continuation` where that is
word_start. EOS and padding are `special`. A whole word is a word_start token whose successor is
not a continuation.
"""

from __future__ import annotations

import unicodedata

import numpy as np

TOKEN_CLASSES = (
    "special",
    "word_start",
    "continuation",
    "punctuation",
    "digit",
    "whitespace",
    "other",
)
SPECIAL, WORD_START, CONTINUATION, PUNCTUATION, DIGIT, WHITESPACE, OTHER = range(7)

_UNKNOWN = 255
# Class of each code point seen so far. Filled when a character first occurs: asking unicodedata
# for all 1.1 million would cost more than reading the corpus.
_class_of = np.full(0x110000, _UNKNOWN, np.uint8)


def byte_classes(text: str) -> np.ndarray:
    """Returns the class of each byte of `text` in UTF-8, uint8 `[bytes]`."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    kinds = _class_of[codes]
    if (kinds == _UNKNOWN).any():
        for code in np.unique(codes[kinds == _UNKNOWN]).tolist():
            _class_of[code] = _character_class(chr(code))
        kinds = _class_of[codes]
    letter = kinds == WORD_START
    if len(codes) > 2:
        apostrophe = (codes[1:-1] == 0x27) | (codes[1:-1] == 0x2019)
        inside = apostrophe & letter[:-2] & letter[2:]
        letter[1:-1] |= inside
    classes = np.where(letter, np.uint8(CONTINUATION), kinds)
    starts = letter.copy()
    starts[1:] &= ~letter[:-1]
    classes[starts] = WORD_START
    if not len(codes) or codes.max() < 0x80:
        return classes
    width = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    first = np.zeros(int(width.sum()), bool)
    first[np.cumsum(width) - width] = True
    spread = np.repeat(classes, width)
    spread[(spread == WORD_START) & ~first] = CONTINUATION
    return spread


def token_classes(classes: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Returns the class of each token, uint8 `[n]`.

    Args:
      classes: of each byte, uint8 `[bytes]`.
      length: bytes of each token, `[n]`, at least 1, adding up to `bytes`.
    """
    size = len(classes)
    solid = np.where(classes != WHITESPACE, np.arange(size), size)
    next_solid = np.minimum.accumulate(solid[::-1])[::-1]
    end = np.cumsum(length)
    found = next_solid[end - length]
    has_solid = found < end
    return np.where(has_solid, classes[np.where(has_solid, found, 0)], np.uint8(WHITESPACE))


def _character_class(character: str) -> int:
    if character.isspace():
        return WHITESPACE
    group = unicodedata.category(character)[0]
    return {"L": WORD_START, "M": WORD_START, "N": DIGIT, "P": PUNCTUATION, "S": PUNCTUATION}.get(
        group, OTHER
    )
