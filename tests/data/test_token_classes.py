import numpy as np
import pytest

from moejax.data.classes import TOKEN_CLASSES, byte_classes, token_classes

# special, word start, continuation, punctuation, digit, whitespace, other
LETTER = {letter: number for number, letter in enumerate("SwcpdWo")}


def codes(pattern):
    return [LETTER[character] for character in pattern]


def test_names_and_numbers_are_fixed():
    # Files and traces hold the numbers; a change here needs a new format version.
    assert TOKEN_CLASSES == (
        "special",
        "word_start",
        "continuation",
        "punctuation",
        "digit",
        "whitespace",
        "other",
    )


@pytest.mark.parametrize(
    "text, pattern",
    [
        ("", ""),
        ("a", "w"),
        ("the cat", "wccWwcc"),
        ("don't", "wcccc"),  # an apostrophe between letters is inside the word
        ("dogs' x", "wcccpWw"),  # one at its end is not
        ("'tis", "pwcc"),
        ("a'", "wp"),
        ("x2y", "wdw"),
        ("my_var=3.5\n", "wcpwccpdpdW"),
        ("é", "wc"),  # two bytes, one letter: the second byte continues
        ("aé b", "wccWw"),
        ("—x", "pppw"),
        ("½", "dd"),
        ("\u00a0", "WW"),
        ("\x00\u200b", "oooo"),
        ("e\u0301x", "wccc"),  # a combining mark belongs to the word
        ("\U0001d400b", "wcccc"),
        ("我们", "wccccc"),
    ],
)
def test_known_classes_of_bytes(text, pattern):
    assert byte_classes(text).tolist() == codes(pattern)
    assert len(byte_classes(text)) == len(text.encode())


def test_known_classes_of_tokens():
    text = "the  cat's 42 (dogs)\n"
    tokens = ["the", " ", " c", "at", "'s", " 42", " (", "do", "gs", ")\n"]
    assert "".join(tokens) == text
    found = token_classes(byte_classes(text), np.array([len(token) for token in tokens]))
    assert found.tolist() == codes("wWwccdpwcp")


def test_a_token_inside_a_character_has_a_class():
    text = "é—"
    found = token_classes(byte_classes(text), np.array([1, 1, 2, 1]))
    assert found.tolist() == codes("wcpp")


def test_the_vocabulary_string_does_not_decide():
    # The same token "at" starts a word at a line's start and continues one after "c".
    classes = byte_classes("at\ncat")
    assert token_classes(classes, np.array([2, 1, 1, 2])).tolist() == codes("wWwc")
