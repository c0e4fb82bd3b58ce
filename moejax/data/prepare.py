"""`prepare(config)`: from a DataConfig to a Dataset, built at most once per content."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from moejax.config import ConfigError, check, write_json
from moejax.data.baselines import count_pairs, count_tokens, cross_entropies, split_positions
from moejax.data.cache import FORMAT_VERSION, Progress, build_once, content_key, silent
from moejax.data.corpora import Corpus, open_corpus
from moejax.data.dataset import Dataset, open_dataset
from moejax.data.encode import encode_split, token_dtype
from moejax.data.knobs import DataConfig
from moejax.data.plan import SPLITS, make_plan
from moejax.data.store import read_store, write_store
from moejax.data.tasks.prepared import prepare_task
from moejax.data.tokenizer import state_hash


def prepare(config: DataConfig, progress: Progress | None = None) -> Dataset:
    """Returns the dataset of a config, from the cache or built now.

    Two steps, each a directory of the cache whose name is a hash of all that shapes it:
    `text-*` (documents and their split, as a tfds dataset) and `tokens-*` (tokenizer and token
    files). Every call reads the sources once to hash them, so changed text is noticed. Safe to
    call from several processes at once; a killed one leaves nothing that is trusted later.

    Args:
      config: the data's knobs.
      progress: called with (stage, done, total).

    Raises:
      ConfigError: a bad knob; bad, missing or too little text; a damaged cache.
    """
    check(config, "config.data")
    report = progress or silent
    if config.general is not None:
        return prepare_task(config, prepare(config.general.text, report), report)
    corpus = open_corpus(config)
    fingerprint = corpus.fingerprint()
    text_id = {
        "format_version": FORMAT_VERSION,
        "corpus": corpus.registered_name,
        "text": fingerprint,
        "domains": sorted(config.domains),
        "validation_fraction": config.validation_fraction,
        "split_seed": config.split_seed,
        "limit_bytes": config.limit_bytes,
    }
    recipe = config.recipe()
    text_key = content_key(text_id)
    tokens_key = content_key({"text": text_key, "tokenizer": recipe.describe()})
    text_path = config.cache_path / f"text-{text_key}"
    tokens_path = config.cache_path / f"tokens-{tokens_key}"

    def build_text(directory: Path) -> dict[str, Any]:
        report("reading text", 0, 1)
        plan = make_plan(corpus, config)
        report("reading text", 1, 1)
        text = write_store(directory, corpus, plan, report)
        _check_unchanged(corpus, fingerprint, config)
        return text | {"corpus": corpus.registered_name, "environment": _environment(config)}

    def build_tokens(directory: Path) -> dict[str, Any]:
        text = build_once(text_path, build_text, report)
        made = _encode(directory, text_path, text, corpus, config, report)
        _check_unchanged(corpus, fingerprint, config)
        return made

    build_once(tokens_path, build_tokens, report)
    dataset = open_dataset(tokens_path, recipe)
    for split in (dataset.train, dataset.validation):
        split.num_windows(config.seq_len)
    return dataset


def _encode(
    directory: Path,
    text_path: Path,
    text: dict[str, Any],
    corpus: Corpus,
    config: DataConfig,
    report: Progress,
) -> dict[str, Any]:
    held = sum(row["validation_documents"] for row in text["documents"])
    total = {"train": sum(r["documents"] for r in text["documents"]) - held, "validation": held}

    def train_texts() -> Iterator[str]:
        for done, (document, _, _) in enumerate(read_store(text_path, corpus, "train"), start=1):
            yield document
            report("training tokenizer", done, total["train"])

    tokenizer = config.recipe().train(train_texts)
    state = tokenizer.state()
    write_json(directory / "tokenizer.json", state)
    splits = {}
    for name in SPLITS:
        documents = read_store(text_path, corpus, name)
        splits[name] = encode_split(directory, name, documents, total[name], tokenizer, report)
    report("counting", 0, 1)
    dtype = token_dtype(tokenizer.vocab_size)
    tokens, ends = {}, {}
    for name in SPLITS:
        tokens[name] = np.memmap(directory / f"{name}.tokens.bin", dtype, "r")
        ends[name] = np.load(directory / f"{name}.doc_ends.npy", allow_pickle=False)
    counts = count_tokens(tokens["train"], tokenizer.vocab_size)
    pairs = count_pairs(tokens["train"], ends["train"], tokenizer.vocab_size)
    np.save(directory / "token_count.npy", counts.astype("<i8"))
    np.save(directory / "pairs.npy", np.stack([pairs.key, pairs.count]).astype("<i8"))
    positions = split_positions(tokens["validation"], ends["validation"])
    report("counting", 1, 1)
    return {
        "corpus": text["corpus"],
        "sources": text["sources"],
        "documents": text["documents"],
        "domains": text["domains"],
        "languages": text["languages"],
        "splits": splits,
        "tokenizer": {
            "name": tokenizer.name,
            "vocab_size": tokenizer.vocab_size,
            "eos_id": tokenizer.eos_id,
            "pad_id": tokenizer.pad_id,
            "sha256": state_hash(state),
        },
        "baselines": cross_entropies(positions, counts, pairs),
        "environment": _environment(config) | {"text": text_path.name},
    }


def _check_unchanged(corpus: Corpus, fingerprint: dict[str, Any], config: DataConfig) -> None:
    # The cache files the result under the fingerprint taken at the start; text that was edited
    # since must not be found there.
    if corpus.fingerprint() != fingerprint:
        raise ConfigError(
            f"config.data.corpus={config.corpus!r}: the text changed while it was being prepared; "
            "run the command again"
        )


def _environment(config: DataConfig) -> dict[str, Any]:
    packages = ("moejax", "numpy", "tensorflow-datasets", "array_record", "tokenizers")
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # moejax run from a checkout
            versions[name] = "not installed"
    return {"corpus": config.corpus, "python": platform.python_version(), "packages": versions}
