"""Texts for the tests of the data floor."""

import json

from moejax.data import DataConfig

STORY = "It wasn't 1 day; the café's cat — old (9 years) — sat.\nThen\tit slept.\n"


def records(count, domain="tale"):
    """Documents of different lengths, all different."""
    return [
        {"text": f"{domain} {i}: " + STORY * (1 + i % 3), "domain": domain, "language": "en"}
        for i in range(count)
    ]


def write_jsonl(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def files_config(folder, pattern="*.jsonl", **changes):
    """A config for the files of a folder, with a cache of its own beside them."""
    values = {
        "corpus": f"files:{folder}/{pattern}",
        "cache_dir": str(folder / "cache"),
        "seq_len": 16,
        "validation_fraction": 0.2,
    }
    return DataConfig(**(values | changes))


def text_of(split, dataset):
    """The documents of a split, decoded."""
    begin, found = 0, []
    for end in split.doc_ends:
        found.append(dataset.tokenizer.decode(split.tokens[begin:end]))
        begin = end
    return found
