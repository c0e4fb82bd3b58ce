"""The plan of a corpus: which documents are taken, and which of them are for validation.

One pass over the documents, keeping only numbers. The split is by document and by domain: of
each domain, the documents with the lowest hash of (seed, id) go to validation, so adding a
folder of other text moves nothing, and every domain is in both splits.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from moejax.config import ConfigError, nearest
from moejax.data.corpora.contract import Corpus
from moejax.data.documents import Document

if TYPE_CHECKING:
    from moejax.data.knobs import DataConfig

SPLITS = ("train", "validation")
LEFT_OUT = -1
# Domain and language ids are uint8 in the files and in the batches.
MAX_LABELS = 256
# Below this a domain could not be in both splits, whatever `limit_bytes` says.
MIN_DOCUMENTS = 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """What becomes of each document of the corpus, in the corpus' order.

    Attributes:
      split: index into SPLITS, or LEFT_OUT, int8 `[documents]`.
      domain: index into `domains`, uint8 `[documents]`.
      language: index into `languages`, uint8 `[documents]`.
      domains: names, in order of appearance.
      languages: names, in order of appearance.
      table: per domain, JSON: documents and bytes taken (total and validation), documents left
        out, SHA-256 over id and text of what is taken.
    """

    split: np.ndarray
    domain: np.ndarray
    language: np.ndarray
    domains: tuple[str, ...]
    languages: tuple[str, ...]
    table: list[dict[str, Any]]

    def documents(self, split: int) -> int:
        """Returns the number of documents of a split."""
        return int((self.split == split).sum())


def make_plan(corpus: Corpus, config: DataConfig) -> Plan:
    """Reads all documents once and decides their fate.

    Raises:
      ConfigError: no document, an empty one, two with one id, an unknown domain, too many
        domains, a domain with fewer than two documents, or whatever the corpus itself finds.
    """
    scan = _Scan(config)
    for document in corpus.documents():
        scan.add(document)
    where = f"config.data.corpus={config.corpus!r}"
    if not scan.taken:
        raise ConfigError(f"{where}: holds no document")
    for name in config.domains:
        if name not in scan.found:
            raise ConfigError(
                f"config.data.domains: no document has the domain {name!r}"
                f"{nearest(name, scan.found)}; the corpus has: {', '.join(scan.found)}"
            )
    taken, domain, size = np.array(scan.taken), np.array(scan.domain), np.array(scan.size)
    split = np.where(taken, 0, LEFT_OUT).astype(np.int8)
    if any(scan.declared):
        split[taken & (np.array(scan.declared) == "validation")] = 1
        for index, name in enumerate(SPLITS):
            if not (split == index).any():
                raise ConfigError(f"{where}: its split {name!r} is empty")
    else:
        for number, name in enumerate(scan.domains):
            members = np.flatnonzero(taken & (domain == number)).tolist()
            if len(members) < MIN_DOCUMENTS:
                raise ConfigError(
                    f"{where}: domain {name!r} has one document, but training and validation "
                    "need one each; add text, or cut the file into documents "
                    "(config.data.separator)"
                )
            count = min(max(round(config.validation_fraction * len(members)), 1), len(members) - 1)
            split[sorted(members, key=scan.rank.__getitem__)[:count]] = 1
    table = []
    for number, (name, digest) in enumerate(scan.domains.items()):
        mine = domain == number
        held = mine & (split == 1)
        table.append(
            {
                "domain": name,
                "documents": int((mine & taken).sum()),
                "bytes": int(size[mine & taken].sum()),
                "validation_documents": int(held.sum()),
                "validation_bytes": int(size[held].sum()),
                "left_out_documents": int((mine & ~taken).sum()),
                "sha256": digest.hexdigest(),
            }
        )
    return Plan(
        split=split,
        domain=domain.astype(np.uint8),
        language=np.array(scan.language, np.uint8),
        domains=tuple(scan.domains),
        languages=tuple(scan.languages),
        table=table,
    )


class _Scan:
    """The one pass over the documents: a number or two for each, in the corpus' order."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self._ids: set[str] = set()
        self._filled: dict[str, tuple[int, int]] = {}  # documents and bytes taken, by domain
        self._full: set[str] = set()
        self.found: dict[str, None] = {}  # every domain met, also those not asked for
        self.domains: dict[str, Any] = {}  # the digest of what is taken
        self.languages: dict[str, int] = {}
        self.taken: list[bool] = []
        self.domain: list[int] = []  # LEFT_OUT for a domain not asked for
        self.language: list[int] = []
        self.size: list[int] = []
        self.rank: list[bytes] = []  # the hash that decides about validation
        self.declared: list[str] = []

    def add(self, document: Document) -> None:
        """Takes note of one document; raises ConfigError for an empty or a second one."""
        where, name = document.where, document.domain
        if document.id in self._ids:
            raise ConfigError(f"{where}: a second document with the id {document.id!r}")
        if not document.text:
            raise ConfigError(f"{where}: document {document.id!r} is empty")
        self._ids.add(document.id)
        self.found[name] = None
        raw = document.text.encode()
        wanted = not self._config.domains or name in self._config.domains
        taken = wanted and self._fits(name, len(raw))
        if wanted:
            digest = self.domains.setdefault(name, hashlib.sha256())
            language = self.languages.setdefault(document.language, len(self.languages))
            if max(len(self.domains), len(self.languages)) > MAX_LABELS:
                label = f"{name!r} or {document.language!r}"
                raise ConfigError(f"{where}: {label} is one too many; at most {MAX_LABELS} labels")
            if taken:
                digest.update(f"{document.id}\0{len(raw)}\0".encode())
                digest.update(raw)
        self.taken.append(taken)
        self.domain.append(list(self.domains).index(name) if wanted else LEFT_OUT)
        self.language.append(language if wanted else 0)
        self.size.append(len(raw))
        seed = self._config.split_seed
        self.rank.append(hashlib.sha256(f"{seed}\0{document.id}".encode()).digest())
        self.declared.append(document.split)

    def _fits(self, name: str, size: int) -> bool:
        """Whether `limit_bytes` lets one more document in: a prefix of whole documents."""
        documents, filled = self._filled.get(name, (0, 0))
        limit = self._config.limit_bytes
        if limit and documents >= MIN_DOCUMENTS and filled + size > limit:
            self._full.add(name)
        if name in self._full:
            return False
        self._filled[name] = (documents + 1, filled + size)
        return True
