"""An example of a task, what makes one valid, its split, and the chat template around it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re

from moejax.config import ConfigError

SPLITS = ("train", "validation", "test")
# Of 2**32 values of a document's hash: what is below the first is for the test, below the second
# for validation. Never a knob: a document stays in its split whatever is asked for.
TEST_BELOW = (1 << 32) // 10
VALIDATION_BELOW = (1 << 32) // 5
CHAT = "User: {prompt}\n\nAssistant: {answer}"
# One prompt or answer: more than any window, less than what would hurt.
MAX_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the answer that is wanted; lines end in '\\n'.

    Attributes:
      id: unique in its task and the same on every machine.
      document: what it was taken from; all examples of a document are in one split.
      prompt: what is asked.
      answer: what is learned.
      domain: what kind of text within the task.
      language: a code ("en", "python", "fr", ...) of the answer.
    """

    id: str
    document: str
    prompt: str
    answer: str
    domain: str
    language: str


def split_of(kind: str, document: str) -> str:
    """Returns the split of a document: by a hash of the task's kind and its name, nothing else."""
    digest = hashlib.sha256(f"{kind}\0{document}".encode()).digest()
    place = int.from_bytes(digest[:4], "big")
    if place < TEST_BELOW:
        return "test"
    return "validation" if place < VALIDATION_BELOW else "train"


def check_split(split: str, path: str = "split") -> None:
    """Raises ConfigError if there is no split of that name."""
    if split not in SPLITS:
        raise ConfigError(f"{path}={split!r}: no split of a task; one of {', '.join(SPLITS)}")


def check_example(example: Example, where: str) -> None:
    """Raises ConfigError, in one line, for an example that nobody could learn from."""
    for name in ("prompt", "answer"):
        text = getattr(example, name)
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise ConfigError(f"{where}: the {name} is no valid Unicode") from None
        if not text.strip():
            raise ConfigError(f"{where}: the {name} is empty")
        if size > MAX_BYTES:
            raise ConfigError(f"{where}: the {name} has {size:,} bytes, more than {MAX_BYTES:,}")
    for name in ("id", "document", "domain", "language"):
        text = getattr(example, name)
        if not 0 < len(text) <= 200 or not text.isprintable():
            raise ConfigError(f"{where}: the {name} is no label: 1 to 200 printable characters")


def same_question(prompt: str) -> str:
    """Returns what two prompts have in common that ask the same, but for case and white space."""
    return re.sub(r"\s+", " ", prompt).strip().lower()


def as_label(text: str) -> str:
    """Returns the beginning of a text as the name of a document."""
    shown = "".join(c if c.isprintable() else "?" for c in same_question(text))
    return shown[:160] or "?"


def place(example: Example) -> bytes:
    """Returns the hash that orders the examples of a split: a prefix comes from everywhere."""
    return hashlib.blake2b(example.id.encode(), digest_size=8).digest()


def check_template(template: str, path: str = "template") -> None:
    """Raises ConfigError unless a template has `{prompt}` once, then `{answer}` at its end."""
    before, _, after = template.partition("{answer}")
    if after or before.count("{prompt}") != 1 or not template.endswith("{answer}"):
        raise ConfigError(
            f"{path}={template!r}: needs {{prompt}} once and {{answer}} once, at the end; "
            f"nearest valid value: {CHAT!r}"
        )


def render(example: Example, template: str = CHAT) -> tuple[str, str]:
    """Returns what is read and what is answered, the end of the document aside.

    White space before the answer belongs to it, because tokenizers give it to the word behind it.
    """
    before = template.partition("{answer}")[0]
    kept = before.rstrip()
    if kept.endswith("{prompt}"):  # the prompt's own last character is none of the template's
        kept = before
    # Replaced, not formatted: a prompt may hold braces of its own.
    return kept.replace("{prompt}", example.prompt), before[len(kept) :] + example.answer


def examples_hash(examples: tuple[Example, ...]) -> str:
    """Returns the SHA-256 over all fields of examples, in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(dataclasses.astuple(example)).encode())
    return digest.hexdigest()
