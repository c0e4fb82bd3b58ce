"""Prompts in, texts out: what stands in files, on a terminal, and elsewhere."""

import io
import json

import pytest

from moejax.config import ConfigError
from moejax.probe.generation import Completion, Printer, Request, Sampling, read_prompts


class Screen(io.TextIOWrapper):
    def __init__(self, terminal):
        super().__init__(io.BytesIO(), encoding="utf-8")
        self._terminal = terminal

    def isatty(self):
        return self._terminal

    def shown(self):
        return self.buffer.getvalue().decode()


def printed(prompts, texts, *, terminal=False, as_json=False):
    screen = Screen(terminal)
    requests = [Request((1, 2), 9, Sampling(seed=5), sample=n) for n in range(len(texts))]
    printer = Printer(prompts, requests, 40, as_json=as_json, stdout=screen)
    for number, text in enumerate(texts):
        for piece in (text[:2], text[2:]):
            printer.piece(number, piece)
    for number, text in enumerate(texts):
        printer.whole(number, Completion(text, (3, 4), (-0.5, -1.25), "length"))
    return screen.shown()


def test_one_text_streams_behind_its_prompt_on_a_terminal():
    shown = printed(["The\x1b[2J cat"], [" sät\x07."], terminal=True)
    assert shown == "\033[2mThe\ufffd[2J cat\033[0m sät\ufffd.\n"


def test_elsewhere_it_is_the_text_as_it_is():
    assert printed(["The cat"], [" s\x1bät."]) == " s\x1bät.\n"


def test_several_texts_have_a_line_above_each():
    shown = printed(["The\ncat", "A dog"], [" sat.", " ran."])
    assert shown == (
        "--- 'The cat', sample 0 (length)\n sat.\n--- 'A dog', sample 1 (length)\n ran.\n"
    )


@pytest.mark.parametrize("terminal", [False, True])
def test_json_is_one_line_for_each_text(terminal):
    shown = printed(["Ä"], ["a\nb\x1b"], terminal=terminal, as_json=True)
    assert json.loads(shown) == {
        "prompt": "Ä",
        "sample": 0,
        "text": "a\nb\x1b",
        "finish": "length",
        "tokens": [3, 4],
        "logprobs": [-0.5, -1.25],
        "prompt_tokens": 2,
        "seed": 5,
        "step": 40,
    }
    assert shown.endswith("}\n") and "\x1b" not in shown


def test_prompts_come_from_the_command_line_and_from_files(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("one\ntwo\n\n")
    (tmp_path / "b.jsonl").write_text('{"prompt": "three"}\n{"prompt": "", "more": 1}\n')
    monkeypatch.setattr("sys.stdin", io.StringIO("four\n"))
    files = [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl"), "-"]
    assert read_prompts(["zero"], files) == ["zero", "one\ntwo\n", "three", "", "four"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("x.jsonl", b'{"prompt": 3}\n', "line 1 has no text `prompt`"),
        ("x.jsonl", b'{"prompt": "a"}\n[\n', "line 2 is no JSON"),
        ("x.txt", b"\xff\xfe", "is no UTF-8 text"),
        ("y.txt", b"", "no such file; did you mean"),
    ],
)
def test_files_without_prompts_are_one_line(tmp_path, name, content, message):
    (tmp_path / name.replace("y", "z")).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as refused:
        read_prompts([], [str(tmp_path / name)])
    assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match="--prompt: is required"):
        read_prompts([], [])
