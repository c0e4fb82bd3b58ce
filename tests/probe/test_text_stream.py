"""Text as it comes: whole characters, and nothing behind a stop text."""

import itertools
import random

import pytest

from moejax.probe.generation import TextStream, for_terminal


def stream(data, stops=(), cuts=()):
    """Pieces of `data` (bytes) as tokens, cut at some places."""
    edges = [0, *sorted(cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    out = TextStream(pieces.__getitem__, stops)
    given = []
    for token in range(len(pieces)):
        given.append(out.push(token))
        if out.stopped:
            break
    given.append(out.end())
    assert "".join(given) == out.text
    return out, given


def slowly(text, stops):
    """Up to the stop text that is complete first."""
    for end in range(len(text) + 1):
        found = [s for s in stops if text[:end].endswith(s)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


def test_a_character_comes_when_it_is_whole():
    _, given = stream("aé€😀".encode(), cuts=range(1, 10))
    assert given == ["a", "", "é", "", "", "€", "", "", "", "😀", ""]


def test_a_character_that_stays_cut_is_replaced():
    out, given = stream("a😀".encode()[:-1])
    assert out.text == "a\ufffd" and given[-1] == "\ufffd"
    assert stream(b"\xffb")[0].text == "\ufffdb"


def test_nothing_is_given_out_that_a_stop_text_takes_back():
    out, given = stream(b"one\n\ntwo", ["\n\nt"], cuts=range(1, 8))
    assert given == ["o", "n", "e", "", "", "", ""] and out.stopped
    out, given = stream(b"one\n\nwo", ["\n\nt"], cuts=range(1, 7))
    assert given == ["o", "n", "e", "", "", "\n\nw", "o", ""] and not out.stopped
    out, given = stream(b"one\n", ["\n\n"], cuts=[1])
    assert given == ["o", "ne", "\n"] and not out.stopped


def test_random_texts_end_where_the_slow_rule_ends_them():
    draw = random.Random(0)
    for _ in range(400):
        text = "".join(draw.choices("abé", k=draw.randrange(0, 14)))
        stops = ["".join(draw.choices("abé", k=draw.randrange(1, 4))) for _ in range(2)]
        data = text.encode()
        cuts = [place for place in range(1, len(data)) if draw.random() < 0.5]
        out, _ = stream(data, stops, cuts)
        assert (out.text, out.stopped) == slowly(text, stops), (text, stops, cuts)


def test_an_empty_stop_text_stops_nothing():
    assert stream(b"abc", [""])[0].text == "abc"


@pytest.mark.parametrize("nasty", ["\x1b[2J", "\x07", "\r", "\x9b31m", "\x00"])
def test_a_terminal_is_not_spoken_to(nasty):
    shown = for_terminal(f"a\n\t{nasty}é")
    assert shown.startswith("a\n\t\ufffd") and shown.endswith("é")
    assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 for c in shown)
