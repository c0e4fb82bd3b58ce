import dataclasses

import numpy as np
import pytest
from data_samples import STORY, files_config, records, text_of, write_jsonl

from moejax.config import ConfigError
from moejax.data import TOKENIZERS, DataConfig, prepare
from moejax.data.tokenizer import state_hash
from moejax.data.tokenizer.bpe import Bpe
from moejax.data.tokenizer.byte import Bytes, ByteTokenizer

TEXTS = [STORY * 3, "def f(x):\n    return x + 1  # why\n" * 4, "<|eos|> \ufffd\uffff\x00 我们 ½²"]


def bpe(vocab=320):
    return Bpe(vocab).train(lambda: TEXTS)


@pytest.mark.parametrize("recipe", [Bytes(), Bpe(320)])
def test_lossless_with_specials_outside_the_text(recipe):
    tokenizer = recipe.train(lambda: TEXTS[:2])
    assert tokenizer.vocab_size == recipe.vocab_size
    assert (tokenizer.eos_id, tokenizer.pad_id) == (recipe.vocab_size - 2, recipe.vocab_size - 1)
    every_byte = "".join(map(chr, range(0x800))) + "\U0010ffff"
    for text in [*TEXTS, every_byte, ""]:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert tokenizer.decode(ids) == text
        assert tokenizer.token_lengths()[ids].sum() == len(text.encode())
        assert not np.isin(ids, [tokenizer.eos_id, tokenizer.pad_id]).any()
    assert tokenizer.token_bytes(tokenizer.eos_id) == b""
    assert tokenizer.decode([tokenizer.eos_id, tokenizer.pad_id]) == ""


def test_bpe_is_the_same_when_trained_again():
    assert state_hash(bpe().state()) == state_hash(bpe().state())
    assert bpe().state()["merges"]


def test_bpe_of_known_text():
    tokenizer = Bpe(260).train(lambda: ["ab ab ab ab abc"])
    # The pair (a, b) is the most frequent; then the space before it.
    assert tokenizer.state()["merges"] == [["a", "b"], ["Ġ", "ab"]]
    assert [tokenizer.token_bytes(int(i)) for i in tokenizer.encode("ab abc")] == [
        b"ab",
        b" ab",
        b"c",
    ]


def test_a_text_too_small_for_the_vocabulary_leaves_ids_unused():
    tokenizer = Bpe(500).train(lambda: ["aa"])
    assert tokenizer.vocab_size == 500
    assert tokenizer.token_bytes(400) == b""
    assert tokenizer.decode(tokenizer.encode("hi")) == "hi"


def test_bpe_loads_what_it_saved():
    saved = bpe()
    loaded = Bpe(320).load(saved.state())
    assert loaded.state() == saved.state()
    assert np.array_equal(loaded.encode(STORY), saved.encode(STORY))


def test_forgetting_pieces_changes_nothing(monkeypatch):
    expected = bpe().encode(STORY)
    monkeypatch.setattr("moejax.data.tokenizer.bpe._MAX_REMEMBERED", 3)
    tokenizer = bpe()
    for _ in range(3):
        assert np.array_equal(tokenizer.encode(STORY), expected)


def test_a_damaged_state_is_refused():
    state = bpe().state() | {"merges": [["no", "such"]]}
    with pytest.raises(ConfigError, match="tokens and merges do not fit"):
        Bpe(320).load(state)


def test_config_knows_the_vocabulary_before_any_text():
    assert DataConfig().vocab_size == 258
    assert DataConfig(tokenizer="bpe", bpe_vocab_size=777).vocab_size == 777


def test_unknown_tokenizer_names_the_nearest():
    with pytest.raises(ConfigError, match=r"config.data.tokenizer='bpee'.*did you mean 'bpe'"):
        prepare(DataConfig(tokenizer="bpee"))


class ComplementTokenizer(ByteTokenizer):
    name = "complement"

    def encode_many(self, texts):
        return [255 - ids for ids in super().encode_many(texts)]

    def token_bytes(self, token):
        return bytes([255 - token]) if token < 256 else b""


class ForgetfulTokenizer(ByteTokenizer):
    def encode_many(self, texts):
        return [ids[:-1] for ids in super().encode_many(texts)]


class StrayTokenizer(ByteTokenizer):
    def encode_many(self, texts):
        return [ids + 200 for ids in super().encode_many(texts)]


def register(monkeypatch, name, tokenizer):
    monkeypatch.setattr(TOKENIZERS, "_classes", dict(TOKENIZERS._classes))

    @TOKENIZERS.register(name)
    @dataclasses.dataclass(frozen=True)
    class Mine(Bytes):
        def describe(self):
            return {"name": name}

        def train(self, texts):
            return tokenizer()

        def load(self, state):
            return tokenizer()


def test_a_tokenizer_of_ones_own_is_one_registration(tmp_path, monkeypatch):
    register(monkeypatch, "complement", ComplementTokenizer)
    write_jsonl(tmp_path / "a.jsonl", records(6))
    dataset = prepare(files_config(tmp_path, tokenizer="complement"))
    assert dataset.tokenizer.name == "complement"
    assert dataset.train.tokens[0] == 255 - ord("t")
    assert text_of(dataset.train, dataset)[0].startswith("tale")


@pytest.mark.parametrize(
    "tokenizer, message",
    [
        (ForgetfulTokenizer, r"train document 0: tokenizer 'bytes' is not lossless: .* 8\d of 8\d"),
        (StrayTokenizer, r"train document 0: tokenizer 'bytes' made an id outside its vocabulary"),
    ],
)
def test_a_tokenizer_that_loses_text_is_refused(tmp_path, monkeypatch, tokenizer, message):
    register(monkeypatch, "mine", tokenizer)
    write_jsonl(tmp_path / "a.jsonl", records(6))
    with pytest.raises(ConfigError, match=message):
        prepare(files_config(tmp_path, tokenizer="mine"))
