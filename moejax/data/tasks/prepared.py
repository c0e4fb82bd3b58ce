"""A task as a prepared dataset: token files like those of a text, and where answers begin.

A document of these files is an example; the tokenizer is that of the base's text.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moejax.config import ConfigError, write_json
from moejax.data.baselines import count_pairs, count_tokens, cross_entropies, split_positions
from moejax.data.cache import Progress, build_once, content_key, silent
from moejax.data.classes import SPECIAL, byte_classes, token_classes
from moejax.data.dataset import Dataset, open_dataset
from moejax.data.encode import token_dtype
from moejax.data.plan import MAX_LABELS, SPLITS
from moejax.data.tasks.contract import Task, open_task
from moejax.data.tasks.encoding import encode_examples
from moejax.data.tasks.example import Example, examples_hash, render
from moejax.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from moejax.data.knobs import DataConfig

FORMAT_VERSION = 1


def prepare_task(config: DataConfig, base: Dataset, progress: Progress = silent) -> Dataset:
    """Returns the examples of a task for training and validation, from the cache or built now.

    Args:
      config: with `general`; its corpus is `task:SPEC`.
      base: the prepared text of the base model, whose tokenizer is used.
      progress: called with (stage, done, total).

    Raises:
      ConfigError: as `open_task` and `Task.examples`; or no prompt fits a window.
    """
    assert config.general is not None
    task, template = open_task(config.corpus), config.general.template
    key = content_key(
        {
            "format_version": FORMAT_VERSION,
            "task": task.fingerprint(),
            "template": template,
            "tokenizer": base.tokenizer_hash,
        }
    )
    directory = config.cache_path / f"task-{key}"

    def build(place: Path) -> dict[str, Any]:
        return _build(place, task, template, base, progress)

    build_once(directory, build, progress)
    dataset = open_dataset(directory, config.recipe())
    for split in (dataset.train, dataset.validation):
        split.num_windows(config.seq_len)
    return dataset


def _build(
    directory: Path, task: Task, template: str, base: Dataset, progress: Progress
) -> dict[str, Any]:
    progress("reading the task", 0, 1)
    examples = {name: task.examples(name) for name in SPLITS}
    progress("reading the task", 1, 1)
    everything = [example for name in SPLITS for example in examples[name]]
    labels = [tuple(dict.fromkeys(e.domain for e in everything))]
    labels.append(tuple(dict.fromkeys(e.language for e in everything)))
    if max(map(len, labels)) > MAX_LABELS:
        raise ConfigError(f"{task.spec!r}: has more than {MAX_LABELS} domains or languages")
    tokenizer = base.tokenizer
    write_json(directory / "tokenizer.json", tokenizer.state())
    splits = {}
    for name in SPLITS:
        progress(f"tokenising {name}", 0, 1)
        splits[name] = _encode(directory, name, examples[name], template, tokenizer, labels)
        progress(f"tokenising {name}", 1, 1)
    dtype = token_dtype(tokenizer.vocab_size)
    tokens = {n: np.fromfile(directory / f"{n}.tokens.bin", dtype) for n in SPLITS}
    ends = {n: np.load(directory / f"{n}.doc_ends.npy", allow_pickle=False) for n in SPLITS}
    counts = count_tokens(tokens["train"], tokenizer.vocab_size)
    pairs = count_pairs(tokens["train"], ends["train"], tokenizer.vocab_size)
    np.save(directory / "token_count.npy", counts.astype("<i8"))
    np.save(directory / "pairs.npy", np.stack([pairs.key, pairs.count]).astype("<i8"))
    positions = split_positions(tokens["validation"], ends["validation"])
    return {
        "corpus": "task",
        "task": {"spec": task.spec, "fingerprint": task.fingerprint(), "template": template}
        | {f"{name}_hash": examples_hash(examples[name]) for name in SPLITS},
        "sources": _sources(task, everything),
        "documents": _table(examples, labels[0]),
        "domains": list(labels[0]),
        "languages": list(labels[1]),
        "splits": splits,
        "tokenizer": base.manifest["tokenizer"],
        "baselines": cross_entropies(positions, counts, pairs),
        "environment": {"corpus": task.corpus},
    }


def _encode(
    directory: Path,
    split: str,
    examples: tuple[Example, ...],
    template: str,
    tokenizer: Tokenizer,
    labels: list[tuple[str, ...]],
) -> dict[str, Any]:
    """Writes the files of a split; returns its JSON row."""
    lengths = tokenizer.token_lengths()
    encoded = encode_examples(tokenizer, examples, template)
    sizes = np.array([len(one) for one in encoded], np.int64)
    ends = sizes.cumsum()
    begins = ends - np.array([len(one.answer) for one in encoded], np.int64)
    classes = []
    for example, one in zip(examples, encoded, strict=True):
        for text, ids in zip(render(example, template), (one.before, one.answer[:-1]), strict=True):
            kinds = byte_classes(text)
            if int(lengths[ids].sum()) != len(kinds):
                raise ConfigError(f"{split}: the tokenizer {tokenizer.name!r} is not lossless")
            classes.append(token_classes(kinds, lengths[ids]))
        classes.append(np.array([SPECIAL], np.uint8))
    ids = np.concatenate([part for one in encoded for part in (one.before, one.answer)])
    ids.astype(token_dtype(tokenizer.vocab_size)).tofile(directory / f"{split}.tokens.bin")
    np.concatenate(classes).astype(np.uint8).tofile(directory / f"{split}.class.bin")
    domains = [labels[0].index(example.domain) for example in examples]
    languages = [labels[1].index(example.language) for example in examples]
    answers = [len(render(example, template)[1].encode()) for example in examples]
    np.save(directory / f"{split}.doc_ends.npy", ends.astype("<i8"))
    np.save(directory / f"{split}.answer_begins.npy", begins.astype("<i8"))
    np.save(directory / f"{split}.doc_domain.npy", np.array(domains, np.uint8))
    np.save(directory / f"{split}.doc_language.npy", np.array(languages, np.uint8))
    np.save(directory / f"{split}.doc_bytes.npy", np.array(answers, "<i8"))
    return {
        "tokens": int(ends[-1]),
        "documents": len({example.document for example in examples}),
        "examples": len(examples),
        "answer_tokens": int((ends - begins).sum()),
        "bytes": sum(answers),
    }


def _sources(task: Task, examples: list[Example]) -> list[dict[str, Any]]:
    """As of a corpus: a row per part, with what all examples together are."""
    size = sum(len(e.prompt.encode()) + len(e.answer.encode()) for e in examples)
    digest = examples_hash(tuple(examples))
    return [
        {"domain": task.kind} | row | {"bytes": size, "sha256": digest} for row in task.sources()
    ]


def _table(
    examples: dict[str, tuple[Example, ...]], domains: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Per domain, as a corpus has it; documents are examples, bytes those of answers."""
    rows = []
    for domain in domains:
        mine = {n: [e for e in examples[n] if e.domain == domain] for n in SPLITS}
        size = {n: sum(len(e.answer.encode()) for e in mine[n]) for n in SPLITS}
        digest = hashlib.sha256(examples_hash((*mine["train"], *mine["validation"])).encode())
        rows.append(
            {
                "domain": domain,
                "documents": sum(map(len, mine.values())),
                "bytes": sum(size.values()),
                "validation_documents": len(mine["validation"]),
                "validation_bytes": size["validation"],
                "left_out_documents": 0,
                "sha256": digest.hexdigest(),
            }
        )
    return rows
