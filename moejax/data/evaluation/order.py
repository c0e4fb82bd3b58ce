"""The order of an evaluation set: every prefix is a fair sample of the whole.

A trace reads as many documents as it has room for. If they came domain by domain, or chapter by
chapter, it would see one language, or one book.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import json
from collections.abc import Iterator

from moejax.data.evaluation.documents import EvaluationDocument

Group = tuple[str, str, float | None]


def wanted_documents(
    documents: list[EvaluationDocument], only: tuple[str, ...]
) -> list[EvaluationDocument]:
    """Returns the documents whose domain or language is among `only`; all if that is ()."""
    if not only:
        return documents
    return [d for d in documents if d.domain in only or d.language in only]


def balanced(
    documents: list[EvaluationDocument], limit_bytes: int = 0
) -> Iterator[EvaluationDocument]:
    """Yields the documents in the balanced order.

    Groups are (domain, language, difficulty). Within one, the order is that of a hash of the
    document's place in it, so a prefix comes from everywhere. Without aligned units, the next
    document is always of the group with the fewest bytes so far. With them, the order is that of
    a hash of the unit's id: the same units in every language, each as a whole.

    Args:
      documents: all of them, in the order of their sources.
      limit_bytes: what each group may yield at most (but one document it may); 0 = no limit.
        With aligned units, the first that would pass the limit in any group ends the whole.
    """
    if any(document.parallel is not None for document in documents):
        return _by_unit(documents, limit_bytes)
    return _by_bytes(documents, limit_bytes)


def _by_bytes(
    documents: list[EvaluationDocument], limit_bytes: int
) -> Iterator[EvaluationDocument]:
    groups: dict[Group, list[EvaluationDocument]] = {}
    for document in documents:
        groups.setdefault(_group(document), []).append(document)
    queues = [
        iter([members[i] for i in sorted(range(len(members)), key=functools.partial(_hash, group))])
        for group, members in groups.items()
    ]
    heap = [(0, number) for number in range(len(queues))]
    while heap:
        size, number = heap[0]
        following = next(queues[number], None)
        after = size + len(following.text.encode()) if following else 0
        if following is None or (limit_bytes and size and after > limit_bytes):
            heapq.heappop(heap)
            continue
        yield following
        heapq.heapreplace(heap, (after, number))


def _by_unit(documents: list[EvaluationDocument], limit_bytes: int) -> Iterator[EvaluationDocument]:
    units: dict[tuple[str, int], list[EvaluationDocument]] = {}
    for index, document in enumerate(documents):
        key = ("index", index) if document.parallel is None else ("unit", document.parallel)
        units.setdefault(key, []).append(document)
    filled: dict[Group, int] = {}
    for key in sorted(units, key=lambda key: _hash(*key)):
        if limit_bytes:
            after = dict(filled)
            for document in units[key]:
                group = _group(document)
                after[group] = after.get(group, 0) + len(document.text.encode())
            if filled and max(after.values()) > limit_bytes:
                return
            filled = after
        yield from units[key]


def held_out(documents: list[EvaluationDocument], fraction: float, seed: int) -> list[bool]:
    """Returns, for each document in the set's order, whether it is kept from training.

    Of each domain and language the share `fraction` with the lowest hashes, at least one document
    and not all (a single one is not held out). Aligned units count as one in their domain and go
    as a whole: a verse trained on in one language gives away the same verse in another.
    """
    units: dict[tuple[str, str], dict[int, None]] = {}
    keys: list[tuple[tuple[str, str], int]] = []
    for document in documents:
        aligned = document.parallel is not None
        group = (document.domain, "" if aligned else document.language)
        members = units.setdefault(group, {})
        unit = document.parallel if document.parallel is not None else len(members)
        members[unit] = None
        keys.append((group, unit))
    chosen: set[tuple[tuple[str, str], int]] = set()
    for group, members in units.items():
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        ranked = sorted(members, key=functools.partial(_hash, seed, group))
        chosen |= {(group, unit) for unit in ranked[:count]}
    return [key in chosen for key in keys]


def _group(document: EvaluationDocument) -> Group:
    return document.domain, document.language, document.difficulty


def _hash(*parts: object) -> bytes:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
