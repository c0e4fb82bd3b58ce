"""Tokenizers of ours go out as files that give the same ids."""

import random
import unicodedata

import numpy as np
import pytest
import tokenizers
from tokenizers import pre_tokenizers

from moejax.config import ConfigError
from moejax.data.tokenizer.bpe import _PIECE, Bpe
from moejax.data.tokenizer.byte import ByteTokenizer
from moejax.data.tokenizer.pretrained import read_tokenizer
from moejax.interop.own_tokenizer import END, PAD, PIECES, own_tokenizer_files

SENTENCES = [
    "It's 12 o'clock; they'll say: naïve  words\n\n\tand ½ of x² = ٣٤ … _under_score_ ",
    "漢字かな交じり文 हिन्दी में ไทย 😀👍🏽 a\u0301 \x1c\x1d x\u00a0y\u2028z  ",
    "",
]


def trained():
    return Bpe(600).train(lambda: SENTENCES * 3)


def written(tmp_path, tokenizer):
    for name, content in own_tokenizer_files(tokenizer).items():
        (tmp_path / name).write_bytes(content)
    return tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize("make", [ByteTokenizer, trained])
def test_the_files_give_the_same_ids(tmp_path, make):
    ours = make()
    theirs = written(tmp_path, ours)
    assert theirs.token_to_id(END) == ours.eos_id and theirs.token_to_id(PAD) == ours.pad_id
    for text in SENTENCES:
        ids = theirs.encode(text).ids
        np.testing.assert_array_equal(ids, ours.encode(text))
        assert theirs.decode(ids) == text
    # And they come back in as an import's own, and out of that again.
    back = read_tokenizer(tmp_path / "tokenizer.json")
    assert (back.eos_id, back.pad_id, back.vocab_size) == (
        ours.eos_id, ours.pad_id, ours.vocab_size,
    )  # fmt: skip
    np.testing.assert_array_equal(back.encode(SENTENCES[0]), ours.encode(SENTENCES[0]))
    again = written(tmp_path, back)
    assert again.encode(SENTENCES[1]).ids == theirs.encode(SENTENCES[1]).ids


def test_pieces_are_cut_alike_in_all_of_unicode():
    """Of characters that both sides' Unicode knows: random strings, space and letters between."""
    rng = random.Random(0)
    split = pre_tokenizers.Split(tokenizers.Regex(PIECES), "isolated")
    known = [c for c in map(chr, range(0x30000)) if unicodedata.category(c) not in ("Cn", "Cs")]
    chosen = known[:600] + rng.sample(known, 4000)
    for start in range(0, len(chosen), 500):
        further = rng.choices(["", " ", "a", "7", "\n", "''"], k=500)
        text = "".join(c + d for c, d in zip(chosen[start:], further, strict=False))
        assert [piece for piece, _ in split.pre_tokenize_str(text)] == _PIECE.findall(text)


def test_a_tokenizer_of_somebody_else_has_no_files():
    class Other(ByteTokenizer):
        name = "other"

    with pytest.raises(ConfigError, match="tokenizer other: has no"):
        own_tokenizer_files(Other())
