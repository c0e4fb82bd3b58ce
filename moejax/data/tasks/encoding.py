"""Examples as ids: what is read and what is answered are encoded apart, in training, scoring and
writing alike, so that an answer begins at the same token everywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from moejax.data.tasks.example import CHAT, Example, render
from moejax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Encoded:
    """An example's ids, int32: `before` the answer (at least one), and the `answer` with EOS."""

    before: np.ndarray
    answer: np.ndarray

    def __len__(self) -> int:
        return len(self.before) + len(self.answer)


def encode_examples(
    tokenizer: Tokenizer, examples: Sequence[Example], template: str = CHAT
) -> list[Encoded]:
    """Returns the ids of examples, the template around them."""
    texts = [text for example in examples for text in render(example, template)]
    ids = tokenizer.encode_many(texts)
    end = np.array([tokenizer.eos_id], np.int32)
    return [
        Encoded(before, np.concatenate([answer, end]))
        for before, answer in zip(ids[::2], ids[1::2], strict=True)
    ]
