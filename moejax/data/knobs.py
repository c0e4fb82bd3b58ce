"""The knobs of the data: which text, which split, which tokenizer, where the cache lies."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from moejax.config import ConfigError, knob
from moejax.data.corpora.contract import parse_corpus
from moejax.data.tasks.contract import open_task
from moejax.data.tasks.example import CHAT, check_template
from moejax.data.tokenizer.contract import TOKENIZERS, Recipe


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What text a model reads, and how it is cut into tokens and windows."""

    corpus: str = knob(
        "embedded",
        doc="`embedded`, `files:PATTERN` (.txt, .jsonl), `tfds:NAME` / `tfds:DIRECTORY`, the "
        "evaluation set `labelled:SPEC`, or (fine-tuning) the task `task:SPEC`.",
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
    general: General | None = knob(
        None, doc="With a task: the text of the base model.", silent_none=True
    )

    def validate(self, path: str) -> None:
        """Raises ConfigError for an unknown kind of corpus or an unknown tokenizer, or a task
        without the base's text and tokenizer."""
        kind, _ = parse_corpus(self.corpus, f"{path}.corpus")
        TOKENIZERS.get(self.tokenizer, f"{path}.tokenizer")
        if kind == "task" and self.general is None:
            raise ConfigError(
                f"{path}.corpus={self.corpus!r}: a task needs the text and tokenizer of a base "
                f"model in {path}.general; python -m experiments.finetune --init=RUN sets it"
            )
        if self.general is None:
            return
        if kind != "task":
            raise ConfigError(
                f"{path}.general: only goes with a task; nearest valid: {path}.corpus='task:SPEC' "
                f"instead of {self.corpus!r}"
            )
        for name in ("tokenizer", "tokenizer_file", "bpe_vocab_size"):
            mine, base = getattr(self, name), getattr(self.general.text, name)
            if mine != base:
                raise ConfigError(
                    f"{path}.{name}={mine!r}: the tokenizer is the base's; nearest valid value "
                    f"{base!r}"
                )

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


@dataclasses.dataclass(frozen=True)
class General:
    """What a base model was trained on, beside the task that it is tuned for."""

    text: DataConfig = knob(doc="The base's text; its tokenizer is the task's too.")
    share: float = knob(
        0.5,
        low=0.0,
        high=1.0,
        high_open=True,
        unit="of the rows",
        doc="Rows of a batch that are general text; 0.5 is task : general = 1 : 1.",
    )
    weigh: str = knob(
        "parts",
        choices=("parts", "tokens"),
        doc="`parts`: general text has `share` of the loss too, though all its tokens are learned "
        "and only answers of the task; `tokens`: every learned token weighs the same.",
    )
    template: str = knob(CHAT, doc="Text of an example: `{prompt}`, and `{answer}` at the end.")

    def validate(self, path: str) -> None:
        """Raises ConfigError for a text that is a task itself, or a template without a place."""
        if self.text.general is not None:
            raise ConfigError(
                f"{path}.text: is a task ({self.text.corpus!r}); nearest valid: the text that its "
                "own base was trained on"
            )
        check_template(self.template, f"{path}.template")


def task_data(
    base: DataConfig, spec: str, *, share: float = 0.5, weigh: str = "parts", template: str = CHAT
) -> DataConfig:
    """Returns the data of a run that tunes a base for a task; general text is the first base's.

    Args:
      base: the data of the run that is tuned, which may be tuned itself.
      spec: of the task, `task:` before it or not.
      share, weigh, template: as in `General`.

    Raises:
      ConfigError: the spec names no task.
    """
    task = open_task(spec)
    text = base.general.text if base.general is not None else base
    general = General(text, share, weigh, template)
    return DataConfig(
        corpus=task.corpus,
        tokenizer=text.tokenizer,
        tokenizer_file=text.tokenizer_file,
        bpe_vocab_size=text.bpe_vocab_size,
        seq_len=base.seq_len,
        cache_dir=base.cache_dir,
        general=general,
    )
