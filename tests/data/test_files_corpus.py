"""Your own text: what is read, and one line for each thing that cannot be."""

import json

import pytest
from data_samples import STORY, files_config, records, text_of, write_jsonl

from moejax.config import ConfigError
from moejax.data import prepare


def failure(config):
    """Returns the message, after checking that it is one line and nothing was built."""
    with pytest.raises(ConfigError) as caught:
        prepare(config)
    message = str(caught.value)
    assert "\n" not in message
    assert not list(config.cache_path.glob("t*[0-9a-f]/manifest.json"))
    return message


def write_texts(folder, *texts):
    for index, text in enumerate(texts):
        file = folder / f"{index}.txt"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())


def test_every_document_is_there_once_in_order(tmp_path):
    rows = records(9)
    write_jsonl(tmp_path / "a.jsonl", rows)
    dataset = prepare(files_config(tmp_path))
    train, validation = text_of(dataset.train, dataset), text_of(dataset.validation, dataset)
    assert len(validation) == 2
    texts = [row["text"] for row in rows]
    assert sorted(train + validation) == sorted(texts)
    assert train == [text for text in texts if text in train]
    assert (dataset.train.num_documents, dataset.validation.num_documents) == (7, 2)
    assert dataset.train.num_bytes == sum(len(text.encode()) for text in train)
    assert dataset.train.tokens[-1] == dataset.tokenizer.eos_id


def test_byte_order_marks_and_line_ends_are_normalised(tmp_path):
    write_texts(
        tmp_path, b"\xef\xbb\xbfone\r\ntwo\rthree, longer than a window\n", "four \ufeff five\n" * 9
    )
    dataset = prepare(files_config(tmp_path, "*.txt"))
    found = {*text_of(dataset.train, dataset), *text_of(dataset.validation, dataset)}
    assert found == {"one\ntwo\nthree, longer than a window\n", "four \ufeff five\n" * 9}


def test_windows_jsonl(tmp_path):
    lines = [json.dumps(row) for row in records(6)]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")
    dataset = prepare(files_config(tmp_path))
    assert dataset.train.num_documents + dataset.validation.num_documents == 6


def test_domains_are_fields_or_folders(tmp_path):
    write_jsonl(tmp_path / "a" / "x.jsonl", [{"text": STORY + str(i)} for i in range(3)])
    write_jsonl(tmp_path / "b" / "deep" / "x.jsonl", [{"text": STORY + str(i)} for i in range(3)])
    rows = [{"text": STORY + str(i), "domain": "own", "language": "fr"} for i in range(3)]
    write_jsonl(tmp_path / "c.jsonl", rows)
    dataset = prepare(files_config(tmp_path, "**/*.jsonl"))
    assert dataset.domains == ("a", "b", "own")
    assert dataset.languages == ("und", "fr")
    assert sorted(dataset.validation.doc_domain) == [0, 1, 2]
    assert dataset.validation.doc_language[dataset.validation.doc_domain == 2].tolist() == [1]


def test_the_same_files_elsewhere_are_the_same_corpus(tmp_path):
    for place in ("here", "there"):
        write_jsonl(tmp_path / place / "a.jsonl", records(6))
    first, second = (prepare(files_config(tmp_path / place)) for place in ("here", "there"))
    assert first.manifest_hash == second.manifest_hash


def test_changed_text_is_prepared_anew(tmp_path):
    rows = records(6)
    first = prepare(files_config(write_jsonl(tmp_path / "a.jsonl", rows).parent))
    rows[0]["text"] += "!"
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert prepare(files_config(tmp_path)).manifest_hash != first.manifest_hash


def test_text_that_changes_meanwhile_is_refused(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", records(6))

    def edit(stage, done, total):
        if stage == "reading text" and done == 0:
            write_jsonl(tmp_path / "a.jsonl", records(7))

    config = files_config(tmp_path)
    with pytest.raises(ConfigError, match="changed while it was being prepared"):
        prepare(config, edit)
    assert not list(config.cache_path.glob("t*/manifest.json"))


def test_one_file_is_cut_at_a_separator(tmp_path):
    end = "<|endoftext|>"
    (tmp_path / "all.txt").write_text(end.join([STORY + str(i) for i in range(5)]) + end + "\n")
    dataset = prepare(files_config(tmp_path, "all.txt", separator=end))
    assert dataset.train.num_documents + dataset.validation.num_documents == 5


def test_a_domain_filter_keeps_only_those(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", records(5, "tale") + records(5, "song"))
    dataset = prepare(files_config(tmp_path, domains=("song",)))
    assert dataset.domains == ("song",)
    assert all(text.startswith("song") for text in text_of(dataset.train, dataset))


# --- bad input: the message names file and record ------------------------------------------------


def test_no_such_file(tmp_path):
    assert "my.txt: no such file" in failure(files_config(tmp_path, "my.txt"))


def test_a_pattern_that_matches_nothing(tmp_path):
    assert "*.txt: matches no file (looked from " in failure(files_config(tmp_path, "*.txt"))


def test_a_directory(tmp_path):
    (tmp_path / "books").mkdir()
    message = failure(files_config(tmp_path, "books"))
    assert f"is a directory; nearest valid: files:{tmp_path}/books/**/*.txt" in message


def test_another_kind_of_file(tmp_path):
    write_texts(tmp_path, STORY, STORY + "2")
    (tmp_path / "notes.md").write_text("x")
    message = failure(files_config(tmp_path, "*"))
    assert f"{tmp_path}/notes.md: cannot read .md; the pattern may match only .txt" in message


def test_an_empty_file(tmp_path):
    write_texts(tmp_path, STORY, "", STORY + "2")
    assert f"{tmp_path}/1.txt: is empty" in failure(files_config(tmp_path, "*.txt"))


def test_nothing_but_a_byte_order_mark(tmp_path):
    write_texts(tmp_path, STORY, b"\xef\xbb\xbf", STORY + "2")
    assert f"{tmp_path}/1.txt: document '1.txt' is empty" in failure(
        files_config(tmp_path, "*.txt")
    )


def test_not_utf8_names_line_and_byte(tmp_path):
    write_texts(tmp_path, STORY, b"ab\ncd\xe9f", STORY + "2")
    message = failure(files_config(tmp_path, "*.txt"))
    assert f"{tmp_path}/1.txt: not UTF-8 at line 2, byte 5 (0xe9:" in message


def test_a_jsonl_line_that_is_not_utf8(tmp_path):
    lines = [json.dumps(row).encode() for row in records(4)]
    lines[2] = b'{"text": "\xff"}'
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    message = failure(files_config(tmp_path))
    assert f"{tmp_path}/a.jsonl: line 3: not UTF-8 at line 1, byte 10 (0xff" in message


@pytest.mark.parametrize(
    "line, reason",
    [
        ('{"text": "cut', "not JSON (Unterminated string"),
        ("", "is blank"),
        ("[1]", "is a JSON list, not an object"),
        ('{"body": "x", "n": 1}', "no field 'text'; it has: body, n (config.data.text_field)"),
        ('{"text": 3}', "field 'text' is a int, not a string"),
        ('{"text": ""}', "document 'a.jsonl#2' is empty"),
        ('{"text": "x", "domain": null}', "field 'domain' is a NoneType, not a string"),
        ('{"text": "\\ud800"}', "field 'text' is not Unicode text at character 0"),
    ],
)
def test_a_bad_jsonl_line_names_its_number(tmp_path, line, reason):
    file = write_jsonl(tmp_path / "a.jsonl", records(4))
    lines = file.read_text().splitlines()
    lines.insert(1, line)
    file.write_text("\n".join(lines) + "\n")
    message = failure(files_config(tmp_path))
    assert f"{file}: line 2: {reason}" in message


def test_one_document_cannot_be_split(tmp_path):
    write_texts(tmp_path, STORY)
    message = failure(files_config(tmp_path, "*.txt"))
    assert "domain 'text' has one document" in message
    assert "config.data.separator" in message


def test_each_domain_needs_two_documents(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [*records(4, "tale"), *records(1, "song")])
    assert "domain 'song' has one document" in failure(files_config(tmp_path))


def test_an_empty_document_between_separators(tmp_path):
    (tmp_path / "a.txt").write_text("one@@two@@@@three@@")
    message = failure(files_config(tmp_path, "a.txt", separator="@@"))
    assert f"{tmp_path}/a.txt: document 3: document 'a.txt#2' is empty" in message


def test_an_unknown_domain(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", records(4, "tale"))
    message = failure(files_config(tmp_path, domains=("tales",)))
    assert "no document has the domain 'tales'; did you mean 'tale'?" in message


def test_too_many_domains(tmp_path):
    rows = [{"text": "x", "domain": str(i // 2)} for i in range(600)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    message = failure(files_config(tmp_path))
    assert "line 513: '256' or 'und' is one too many; at most 256 labels" in message


def test_a_split_shorter_than_one_window_names_the_sizes(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "ab"}, {"text": "abcdefgh" * 9}])
    with pytest.raises(ConfigError) as caught:
        prepare(files_config(tmp_path, seq_len=3000))
    message = str(caught.value)
    assert "train.tokens.bin: the train split has" in message
    assert "fewer than one window of seq_len + 1 = 3001; nearest valid seq_len:" in message


@pytest.mark.parametrize(
    "corpus, reason",
    [
        (
            "file:x.txt",
            "unknown corpus; did you mean 'files'?; known: embedded, files, labelled, task, tfds",
        ),
        ("files:", "needs an argument; nearest valid: files:PATTERN"),
        ("files", "needs an argument; nearest valid: files:PATTERN"),
        ("embedded:drama", "takes no argument; nearest valid value: 'embedded'"),
    ],
)
def test_a_bad_corpus_name(tmp_path, corpus, reason):
    message = failure(files_config(tmp_path, corpus=corpus))
    assert message == f"config.data.corpus={corpus!r}: {reason}"


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"seq_len": 0}, "config.data.seq_len=0"),
        ({"validation_fraction": 1.0}, "config.data.validation_fraction=1.0"),
        ({"bpe_vocab_size": 100}, "nearest valid value: 258"),
        ({"limit_bytes": -1}, "config.data.limit_bytes=-1"),
    ],
)
def test_values_out_of_range(tmp_path, change, reason):
    assert reason in failure(files_config(tmp_path, **change))


def test_a_cache_that_cannot_be_written(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", records(4))
    (tmp_path / "taken").write_text("")
    config = files_config(tmp_path, cache_dir=str(tmp_path / "taken"))
    message = failure(config)
    assert "cannot write the data cache" in message
    assert "config.data.cache_dir or $MOEJAX_CACHE" in message
