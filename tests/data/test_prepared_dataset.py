"""What lies in the cache: trusted only when whole, refused when changed."""

import json
import shutil

import numpy as np
import pytest
from data_samples import files_config, records, text_of, write_jsonl

from moejax.config import ConfigError
from moejax.data import TOKEN_CLASSES, open_dataset, prepare
from moejax.data.cache import build_once


@pytest.fixture
def copy(story, tmp_path):
    """A prepared dataset that a test may damage."""
    return shutil.copytree(story.directory, tmp_path / "tokens")


def refusal(directory):
    with pytest.raises(ConfigError) as caught:
        open_dataset(directory)
    message = str(caught.value)
    assert "\n" not in message
    assert f"delete {directory} to prepare it again" in message
    return message


def test_files_are_as_documented(story):
    split = story.train
    assert split.tokens.dtype == np.uint16
    assert isinstance(split.tokens, np.memmap)
    assert split.tokens[split.doc_ends - 1].tolist() == [story.tokenizer.eos_id] * len(
        split.doc_ends
    )
    special = split.token_class == TOKEN_CLASSES.index("special")
    np.testing.assert_array_equal(special, split.tokens == story.tokenizer.eos_id)
    np.testing.assert_array_equal(
        split.doc_bytes, [len(text.encode()) for text in text_of(split, story)]
    )
    assert story.domains == ("tale", "song")
    assert split.bytes_per_token == split.num_bytes / (split.num_tokens - split.num_documents)


def test_nothing_is_built_twice(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", records(8))
    stages = []
    config = files_config(tmp_path)
    first = prepare(config, lambda *event: stages.append(event))
    assert {event[0] for event in stages} == {
        "reading text",
        "storing text",
        "tokenising train",
        "tokenising validation",
        "counting",
    }
    assert all(done <= total for _, done, total in stages)
    stages.clear()
    second = prepare(config, lambda *event: stages.append(event))
    assert stages == []
    assert second.manifest == first.manifest
    assert second.directory == first.directory


def test_text_is_stored_once_for_all_tokenizers_and_lengths(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", records(8))
    for changes in ({}, {"tokenizer": "bpe", "bpe_vocab_size": 280}, {"seq_len": 7}):
        prepare(files_config(tmp_path, **changes))
    names = [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert sorted(name.split("-")[0] for name in names) == ["text", "tokens", "tokens"]


def test_building_again_gives_the_same_bytes(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", records(8))
    config = files_config(tmp_path, tokenizer="bpe", bpe_vocab_size=300)
    first = prepare(config)
    shutil.rmtree(config.cache_path)
    assert prepare(config).manifest["files"] == first.manifest["files"]


def test_batches_of_text_change_nothing(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "a.jsonl", records(8))
    first = prepare(files_config(tmp_path))
    monkeypatch.setattr("moejax.data.encode._BATCH_CHARACTERS", 50)
    again = prepare(files_config(tmp_path, cache_dir=str(tmp_path / "other")))
    assert again.manifest["files"] == first.manifest["files"]


def test_wide_vocabularies_take_four_bytes(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", records(8))
    dataset = prepare(files_config(tmp_path, tokenizer="bpe", bpe_vocab_size=70_000))
    assert dataset.train.tokens.dtype == np.uint32
    assert dataset.train.tokens[dataset.train.doc_ends[0] - 1] == 69_998
    assert text_of(dataset.train, dataset)[0].startswith("tale")


def test_the_text_is_a_tfds_dataset(tmp_path):
    from moejax.data.corpora.tfds_dataset import quiet

    strange = 'two\nlines, "quotes" '
    write_jsonl(tmp_path / "a.jsonl", records(8, strange))
    config = files_config(tmp_path)
    dataset = prepare(config)
    assert dataset.domains == (strange,)
    (text,) = config.cache_path.glob("text-*[0-9a-f]")
    with quiet() as tfds:
        builder = tfds.builder_from_directory(text / "tfds" / "moejax_text" / "1.0.0")
        source = builder.as_data_source(split="train")
    texts = [source[i]["text"].decode() for i in range(len(source))]
    assert texts == text_of(dataset.train, dataset)
    assert source[0]["domain"].decode() == strange


@pytest.mark.parametrize(
    "name", ["train.tokens.bin", "validation.class.bin", "train.doc_ends.npy", "pairs.npy"]
)
def test_a_truncated_file_is_named(copy, name):
    file = copy / name
    size = file.stat().st_size
    with open(file, "r+b") as stream:
        stream.truncate(size - 2)
    message = refusal(copy)
    assert f"{file}: truncated: {size - 2} bytes where the manifest says {size}" in message


def test_a_file_that_grew_or_vanished_is_named(copy):
    with open(copy / "train.tokens.bin", "ab") as stream:
        stream.write(b"xx")
    assert "train.tokens.bin: changed: " in refusal(copy)
    (copy / "train.tokens.bin").unlink()
    assert "train.tokens.bin: is missing" in refusal(copy)


def flip(file, offset):
    with open(file, "r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte[0] ^ 0x55]))


def test_a_changed_small_file_is_named_on_opening(copy):
    flip(copy / "validation.tokens.bin", 11)
    message = refusal(copy)
    assert "validation.tokens.bin: its content changed after the data was prepared" in message


def test_a_changed_large_file_is_found_by_verify(copy, monkeypatch):
    monkeypatch.setattr("moejax.data.cache.SMALL", 0)  # every file counts as large
    open_dataset(copy).verify()
    flip(copy / "train.tokens.bin", 10)
    dataset = open_dataset(copy)
    with pytest.raises(ConfigError, match=r"train\.tokens\.bin: its content changed"):
        dataset.verify()


def test_a_changed_manifest_is_refused(copy):
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["splits"]["train"]["tokens"] -= 1
    path.write_text(json.dumps(manifest))
    assert f"{path}: was changed after it was written" in refusal(copy)


@pytest.mark.parametrize(
    "content, reason",
    [
        ('{"a": 1}', "is not a manifest of prepared data"),
        ('{"checksum": "", "format_version": 99}', "has format version 99, this program"),
    ],
)
def test_a_manifest_of_something_else(copy, content, reason):
    (copy / "manifest.json").write_text(content)
    assert reason in refusal(copy)


def test_a_manifest_cut_short(copy):
    path = copy / "manifest.json"
    path.write_text(path.read_text()[:200])
    with pytest.raises(ConfigError, match=r"manifest\.json: is cut short"):
        open_dataset(copy)


def test_ids_outside_the_vocabulary_are_found(copy, monkeypatch, story):
    file = copy / "train.tokens.bin"
    tokens = np.fromfile(file, "<u2")
    tokens[5] = 4000
    tokens.tofile(file)
    # Even where the hashes were made to agree, as a foreign writer would.
    monkeypatch.setattr("moejax.data.dataset.check_files", lambda *a, **k: None)
    monkeypatch.setattr("moejax.data.cache.check_files", lambda *a, **k: None)
    dataset = open_dataset(copy)
    with pytest.raises(ConfigError, match=r"train\.tokens\.bin: token 5 \(document 0\) has the id"):
        dataset.verify()


def test_files_that_disagree_are_refused(copy, monkeypatch):
    monkeypatch.setattr("moejax.data.cache.check_files", lambda *a, **k: None)
    ends = np.load(copy / "train.doc_ends.npy")
    np.save(copy / "train.doc_ends.npy", ends + 1)
    assert "they disagree" in refusal(copy)


def test_another_tokenizer_is_refused(copy, monkeypatch):
    monkeypatch.setattr("moejax.data.cache.check_files", lambda *a, **k: None)
    (copy / "tokenizer.json").write_text('{"name": "bpe"}')
    with pytest.raises(ConfigError, match="is not the tokenizer that made these tokens"):
        open_dataset(copy)


def test_a_damaged_text_store_is_named(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", records(8))
    config = files_config(tmp_path)
    prepare(config)
    (text,) = config.cache_path.glob("text-*[0-9a-f]")
    (shard,) = text.rglob("*train.array_record*")
    with open(shard, "r+b") as stream:
        stream.truncate(100)
    with pytest.raises(ConfigError, match="truncated: 100 bytes where the manifest says"):
        prepare(files_config(tmp_path, tokenizer="bpe"))


def test_a_failed_build_leaves_nothing(tmp_path):
    def build(directory):
        (directory / "part").write_text("x")
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        build_once(tmp_path / "thing", build)
    assert [path.name for path in tmp_path.iterdir()] == ["thing.lock"]


def test_a_directory_without_manifest_is_not_trusted(tmp_path):
    (tmp_path / "thing").mkdir()
    with pytest.raises(ConfigError, match=r"thing: exists without manifest\.json"):
        build_once(tmp_path / "thing", lambda directory: {})


def test_a_prepared_dataset_needs_no_write_access(story, monkeypatch):
    monkeypatch.setattr("moejax.data.cache._locked", None)
    build_once(story.directory, lambda directory: pytest.fail("built again"))
