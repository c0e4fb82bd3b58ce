"""The contract of a corpus: documents in a fixed order, and a fingerprint of their sources."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

from moejax.config import ConfigError, Registry, nearest
from moejax.data.documents import Document

if TYPE_CHECKING:
    from moejax.data.knobs import DataConfig

CORPORA = Registry("corpus")


class Corpus(Protocol):
    """A source of documents: a frozen dataclass registered in `CORPORA`.

    Attributes:
      stored: whether the text is copied into a tfds dataset of ours (a corpus that already is
        a tfds dataset needs no copy).
    """

    registered_name: ClassVar[str]
    stored: ClassVar[bool]

    @classmethod
    def from_data(cls, config: DataConfig, argument: str) -> Corpus:
        """Makes the corpus from what stands after `kind:`; raises ConfigError if that is bad."""

    def fingerprint(self) -> dict[str, Any]:
        """Returns JSON that changes whenever the documents would; equal on every machine."""

    def sources(self) -> list[dict[str, Any]]:
        """Returns one JSON row per source: at least domain, package or path, and licence."""

    def documents(self) -> Iterator[Document]:
        """Yields all documents, in the same order every time; may be called again."""


def parse_corpus(text: str, path: str = "config.data.corpus") -> tuple[str, str]:
    """Splits "kind:argument".

    Raises:
      ConfigError: unknown kind; or an argument that the kind needs is absent, or not wanted.
    """
    kind, colon, argument = text.partition(":")
    if kind not in CORPORA:
        hint, known = nearest(kind, CORPORA.names()), ", ".join(CORPORA.names())
        raise ConfigError(f"{path}={text!r}: unknown corpus{hint}; known: {known}")
    cls = CORPORA.get(kind, path)
    wanted = cls.argument_name
    if wanted and not argument:
        raise ConfigError(f"{path}={text!r}: needs an argument; nearest valid: {kind}:{wanted}")
    if not wanted and colon:
        raise ConfigError(f"{path}={text!r}: takes no argument; nearest valid value: {kind!r}")
    return kind, argument


def open_corpus(config: DataConfig) -> Corpus:
    """Returns the corpus that `config.corpus` names.

    Raises:
      ConfigError: unknown kind, or the corpus refuses its argument.
    """
    kind, argument = parse_corpus(config.corpus)
    return cast(Corpus, CORPORA.get(kind).from_data(config, argument))
