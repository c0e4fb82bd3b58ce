"""Which documents are held out."""

import dataclasses

import numpy as np
import pytest

from moejax.config import ConfigError
from moejax.data import DataConfig
from moejax.data.documents import Document
from moejax.data.plan import make_plan


@dataclasses.dataclass
class Corpus:
    rows: list

    def documents(self):
        for row in self.rows:
            yield Document(*row) if len(row) > 4 else Document(*row, where="memory")


def rows(count, domain="a", size=10):
    return [(f"{domain}/{i}", "x" * size, domain, "en") for i in range(count)]


def held_out(plan, corpus):
    return {row[0] for row, split in zip(corpus.rows, plan.split, strict=True) if split == 1}


def test_every_domain_is_in_both_splits():
    corpus = Corpus(rows(100, "a") + rows(2, "b") + rows(40, "c"))
    plan = make_plan(corpus, DataConfig())
    counts = [(r["documents"], r["validation_documents"]) for r in plan.table]
    assert counts == [(100, 5), (2, 1), (40, 2)]
    assert sorted(np.unique(plan.split)) == [0, 1]


def test_half_of_everything():
    plan = make_plan(Corpus(rows(3)), DataConfig(validation_fraction=0.99))
    assert (plan.documents(0), plan.documents(1)) == (1, 2)  # training keeps one


def test_a_document_keeps_its_side_whatever_its_neighbours_are():
    first, second = Corpus(rows(50, "a")), Corpus(rows(9, "b") + rows(50, "a")[::-1])
    held = held_out(make_plan(first, DataConfig()), first)
    assert held == {i for i in held_out(make_plan(second, DataConfig()), second) if i[0] == "a"}


def test_another_seed_holds_out_others():
    corpus = Corpus(rows(50))
    plans = [make_plan(corpus, DataConfig(split_seed=seed)) for seed in range(4)]
    assert len({frozenset(held_out(plan, corpus)) for plan in plans}) == 4


def test_a_limit_takes_a_prefix_and_at_least_two():
    corpus = Corpus(rows(10, "a", 10) + rows(5, "b", 1000))
    plan = make_plan(corpus, DataConfig(limit_bytes=35))
    assert plan.split[:10].tolist().count(-1) == 7
    assert plan.split[3:10].tolist() == [-1] * 7
    assert (plan.split[10:12] >= 0).all() and (plan.split[12:] == -1).all()


def test_a_limit_stops_at_the_first_document_that_does_not_fit():
    sizes = [10, 10, 100, 10]
    corpus = Corpus([(str(i), "x" * size, "a", "en") for i, size in enumerate(sizes)])
    assert make_plan(corpus, DataConfig(limit_bytes=40)).split.tolist()[2:] == [-1, -1]


def test_a_second_document_with_the_same_id():
    with pytest.raises(ConfigError, match="memory: a second document with the id 'a/0'"):
        make_plan(Corpus(rows(2) + rows(1)), DataConfig())


def test_no_document():
    with pytest.raises(ConfigError, match="holds no document"):
        make_plan(Corpus([]), DataConfig())


def test_the_hash_of_a_domain_sees_text_ids_and_order():
    base = rows(4)
    variants = [
        base,
        [base[0], ("a/x", *base[1][1:]), *base[2:]],
        [(base[0][0], "y" * 10, *base[0][2:]), *base[1:]],
        base[::-1],
    ]
    hashes = {make_plan(Corpus(v), DataConfig()).table[0]["sha256"] for v in variants}
    assert len(hashes) == 4


def test_splits_that_the_corpus_declares_are_kept():
    declared = ["train", "validation", "validation", "train"]
    corpus = Corpus([(*row, "memory", s) for row, s in zip(rows(4), declared, strict=True)])
    plan = make_plan(corpus, DataConfig())
    assert plan.split.tolist() == [0, 1, 1, 0]


def test_a_declared_split_that_a_limit_empties():
    declared = ["train", "train", "validation"]
    corpus = Corpus([(*row, "memory", s) for row, s in zip(rows(3), declared, strict=True)])
    with pytest.raises(ConfigError, match="its split 'validation' is empty"):
        make_plan(corpus, DataConfig(limit_bytes=1))
