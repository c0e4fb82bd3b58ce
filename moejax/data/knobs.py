"""The knobs of the data: which text, which split, which tokenizer, where the cache lies."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from moejax.config import knob
from moejax.data.corpora.contract import parse_corpus
from moejax.data.tokenizer.contract import TOKENIZERS, Recipe


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What text a model reads, and how it is cut into tokens and windows."""

    corpus: str = knob(
        "embedded",
        doc="`embedded`, `files:PATTERN` (.txt, .jsonl), `tfds:NAME` / `tfds:DIRECTORY`, or the "
        "evaluation set `labelled:SPEC`.",
    )
    domains: tuple[str, ...] = knob((), doc="Keep only these domains; () keeps all.")
    tokenizer: str = knob("bytes", doc="A registered tokenizer: `bytes`, `bpe` or `pretrained`.")
    tokenizer_file: str = knob(
        "", doc="The tokenizer.json of `pretrained`; its tokenizer_config.json lies beside it."
    )
    bpe_vocab_size: int = knob(
        2048, low=258, high=1 << 20, unit="tokens", doc="Vocabulary of `bpe`, specials included."
    )
    seq_len: int = knob(128, low=1, high=1 << 24, unit="tokens", doc="Length of a window.")
    validation_fraction: float = knob(
        0.05,
        low=0.0,
        high=1.0,
        low_open=True,
        high_open=True,
        doc="Share of each domain's documents kept for validation (at least one).",
    )
    split_seed: int = knob(0, low=0, doc="Another seed sends other documents to validation.")
    limit_bytes: int = knob(
        0,
        low=0,
        unit="bytes of text per domain",
        doc="Keep only the first documents of each domain, up to this size (and two at least); "
        "0 keeps all. For quick runs.",
    )
    text_field: str = knob("text", doc="Field of a .jsonl record or tfds example with the text.")
    domain_field: str = knob("domain", doc="Optional field with the document's domain.")
    language_field: str = knob("language", doc="Optional field with the document's language.")
    separator: str = knob(
        "",
        doc="Text that separates the documents of one .txt file, e.g. '<|endoftext|>'; "
        "'' makes each file one document.",
    )
    cache_dir: str = knob(
        "", doc="Where prepared data is kept; '' = $MOEJAX_CACHE, else ~/.cache/moejax."
    )

    def validate(self, path: str) -> None:
        """Raises ConfigError for an unknown kind of corpus or an unknown tokenizer."""
        parse_corpus(self.corpus, f"{path}.corpus")
        TOKENIZERS.get(self.tokenizer, f"{path}.tokenizer")

    def recipe(self) -> Recipe:
        """Returns the recipe of the tokenizer."""
        made: Recipe = TOKENIZERS.get(self.tokenizer, "config.data.tokenizer").from_data(self)
        return made

    @property
    def vocab_size(self) -> int:
        """The number of token ids, specials included; known before any text is read."""
        return self.recipe().vocab_size

    @property
    def cache_path(self) -> Path:
        """The directory of all prepared data."""
        root = self.cache_dir or os.environ.get("MOEJAX_CACHE") or "~/.cache/moejax"
        return Path(root).expanduser()
