"""The contract of evaluation sets: specs, order, selection, sources."""

import collections
import dataclasses
import hashlib
import itertools
import json

import pytest
from data_samples import write_jsonl
from evaluation_samples import documents, refusal

from moejax.config import ConfigError
from moejax.data.evaluation import EVALUATIONS, EvaluationDocument, Part, open_evaluation
from moejax.data.evaluation.documents import MAX_TEXT_BYTES, check_document, pieces
from moejax.data.evaluation.order import balanced, held_out


def many(rng, groups, parallel=False):
    """Documents of several groups, in the order of the groups, of very different sizes."""
    made = []
    for name, count, size in groups:
        for i in range(count):
            text = f"{name} {i} " + "x" * int(rng.integers(1, size))
            made.append(EvaluationDocument(text, name, "en", parallel=i if parallel else None))
    return made


# --- specs ----------------------------------------------------------------------------------------


def test_every_kind_is_known():
    assert EVALUATIONS.names() == (
        *("brown", "conllu", "domains", "files", "languages", "reasoning", "tfds", "treebank"),
        "udhr",
    )


def test_a_spec_has_kind_argument_and_options():
    found = open_evaluation("files:a?/b:c??.jsonl?label=genre&only=x,y&limit_bytes=10")
    assert (found.source.argument, found.source.label) == ("a?/b:c??.jsonl", "genre")
    assert (found.selection.only, found.selection.limit_bytes) == (("x", "y"), 10)
    assert open_evaluation("reasoning?size=7&tasks=gcd").source.size == 7
    assert open_evaluation("files:what?.jsonl").source.argument == "what?.jsonl"


def test_a_name_is_fit_for_a_folder():
    assert open_evaluation("domains").name == "domains"
    names = {open_evaluation(f"files:{x}/../é *.jsonl").name for x in "ab"}
    assert len(names) == 2
    assert all(name.removeprefix("files-").isalnum() for name in names)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("domain", "unknown evaluation set; did you mean 'domains'?; known: brown, "),
        ("", "unknown evaluation set; known: brown, "),
        ("files", "'files': needs an argument; nearest valid: files:GLOB"),
        ("domains:law", "'domains:law': takes no argument; nearest valid: 'domains'"),
        ("domains?onli=law", "unknown option 'onli'; did you mean 'only'?"),
        ("domains?zzz=1", "unknown option 'zzz'; valid options: only, limit_bytes"),
        ("domains?only=", "option 'only=' needs a value; e.g. only=VALUE"),
        ("domains?only=a&only=b", "option 'only' is given twice"),
        ("domains?limit_bytes=ten", "expected a whole number; for example limit_bytes=0"),
        ("domains?limit_bytes=-1", "limit_bytes=-1: must be >= 0; nearest valid value: 0"),
        ("languages?unit=book", "must be one of verse, chapter"),
        ("reasoning?tasks=gcf", "unknown task; did you mean 'gcd'?"),
        ("files:x.jsonl?argument=y", "unknown option 'argument'"),
    ],
)
def test_a_bad_spec_is_one_line(spec, message):
    with pytest.raises(ConfigError) as caught:
        open_evaluation(spec)
    assert message in str(caught.value)


# --- order ----------------------------------------------------------------------------------------


def test_the_order_is_a_permutation_and_always_the_same(rng):
    made = many(rng, [("a", 30, 50), ("b", 7, 500), ("c", 1, 9)])
    first = list(balanced(made))
    assert first == list(balanced(made))
    assert collections.Counter(first) == collections.Counter(made)
    assert [d for d in first if d.domain == "a"] != [d for d in made if d.domain == "a"]


def test_the_next_document_is_of_the_group_with_the_fewest_bytes(rng):
    made = many(rng, [("a", 40, 30), ("b", 8, 400), ("c", 20, 90)])
    left = collections.Counter(d.domain for d in made)
    filled = dict.fromkeys(left, 0)
    for document in balanced(made):
        assert filled[document.domain] == min(filled[name] for name in left if left[name])
        filled[document.domain] += len(document.text.encode())
        left[document.domain] -= 1
    assert not any(left.values())


def test_levels_are_groups_of_their_own():
    made = [EvaluationDocument("0123456789", "sum", "en", float(i // 20)) for i in range(60)]
    first = list(balanced(made))
    assert collections.Counter(d.difficulty for d in first[:30]) == {0.0: 10, 1.0: 10, 2.0: 10}


def test_a_prefix_comes_from_everywhere():
    """Of 1,000 documents the first 100 lie at no less than 20 and no more than 80 % on average."""
    made = [EvaluationDocument(f"{i:04}", "a", "en") for i in range(1000)]
    places = [int(d.text) for d in balanced(made)][:100]
    assert 200 < sum(places) / 100 < 800
    assert len({place // 100 for place in places}) == 10


def test_aligned_units_stand_together_in_every_language(rng):
    made = many(rng, [("a", 25, 40), ("b", 25, 400), ("c", 25, 90)], parallel=True)
    found = list(balanced(made))
    assert len(found) == 75
    for i in range(0, 75, 3):
        assert [d.domain for d in found[i : i + 3]] == ["a", "b", "c"]
        assert len({d.parallel for d in found[i : i + 3]}) == 1
    assert [d.parallel for d in found[::3]] != list(range(25))
    fewer = [d for d in made if d.domain != "b"]
    assert [d.parallel for d in balanced(fewer)][::2] == [d.parallel for d in found[::3]]


@pytest.mark.parametrize("limit", [1, 90, 500, 10**6])
def test_a_limit_cuts_each_group(rng, limit):
    made = many(rng, [("a", 30, 50), ("b", 9, 300)])
    whole, cut = list(balanced(made)), list(balanced(made, limit))
    for name in "ab":
        mine = [d for d in whole if d.domain == name]
        taken = [d for d in cut if d.domain == name]
        assert taken == mine[: len(taken)] and taken
        assert sum(len(d.text) for d in taken) <= limit or len(taken) == 1
        if len(taken) < len(mine):
            assert sum(len(d.text) for d in mine[: len(taken) + 1]) > limit


def test_a_limit_cuts_aligned_units_as_a_whole(rng):
    made = many(rng, [("a", 25, 10), ("b", 25, 100)], parallel=True)
    cut = list(balanced(made, 600))
    assert cut == list(balanced(made))[: len(cut)]
    assert 0 < len(cut) < 50 and len(cut) % 2 == 0
    assert sum(len(d.text) for d in cut if d.domain == "b") <= 600


# --- what is held out -----------------------------------------------------------------------------


def test_a_share_of_each_group_is_held_out(rng):
    made = many(rng, [("a", 200, 5), ("b", 10, 5), ("c", 2, 5), ("d", 1, 5)])
    held = held_out(made, 0.1, 0)
    count = collections.Counter(d.domain for d, out in zip(made, held, strict=True) if out)
    assert count == {"a": 20, "b": 1, "c": 1}
    assert held == held_out(made, 0.1, 0)
    assert held != held_out(made, 0.1, 1)


def test_an_aligned_unit_is_held_out_in_all_languages():
    made = [
        EvaluationDocument("x", "s", language, parallel=i)
        for language in ("en", "de", "fr")
        for i in range(50)
    ]
    held = held_out(made, 0.2, 0)
    units = {d.parallel for d, out in zip(made, held, strict=True) if out}
    assert len(units) == 10
    assert sum(held) == 30


# --- selection and sources ------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path):
    rows = [
        {"text": f"{domain} {language} {i}", "domain": domain, "language": language}
        for domain in ("law", "code")
        for language in ("en", "fr")
        for i in range(3)
    ]
    write_jsonl(tmp_path / "a.jsonl", rows)
    return f"files:{tmp_path}/a.jsonl"


def test_only_keeps_domains_and_languages(mine):
    assert {d.domain for d in documents(f"{mine}?only=law")} == {"law"}
    assert {d.language for d in documents(f"{mine}?only=fr")} == {"fr"}
    assert len(documents(f"{mine}?only=fr,law")) == 9
    message = refusal(f"{mine}?only=laws")
    assert "only='laws': no domain or language of that name; did you mean 'law'?" in message


def test_sources_count_what_the_documents_are(mine):
    rows = open_evaluation(mine).sources()
    assert [(row["domain"], row["language"]) for row in rows] == [
        *(("law", "en"), ("law", "fr"), ("code", "en"), ("code", "fr")),
    ]
    assert {(r["documents"], r["bytes"], r["licence"]) for r in rows[:2]} == {(3, 24, "your own")}
    digest = hashlib.sha256()
    for i in range(3):
        digest.update(json.dumps([f"law fr {i}", "law", "fr", None, None, []]).encode())
    assert rows[1]["sha256"] == digest.hexdigest()
    assert open_evaluation(f"{mine}?only=code").sources() == rows[2:]


def test_a_fingerprint_follows_the_text_and_not_its_place(mine, tmp_path):
    first = open_evaluation(mine).fingerprint()
    assert json.loads(json.dumps(first)) == json.loads(
        json.dumps(open_evaluation(mine).fingerprint())
    )
    copy = tmp_path / "elsewhere" / "a.jsonl"
    copy.parent.mkdir()
    copy.write_bytes((tmp_path / "a.jsonl").read_bytes())
    assert open_evaluation(f"files:{copy}").fingerprint() == first
    assert open_evaluation(f"files:{copy}?only=law").fingerprint() != first
    assert open_evaluation(f"files:{copy}?label=language").fingerprint() != first
    renamed = copy.rename(copy.with_name("b.jsonl"))  # the domain of documents without a label
    assert open_evaluation(f"files:{renamed}").fingerprint() != first
    (tmp_path / "a.jsonl").write_text((tmp_path / "a.jsonl").read_text() + "\n")
    assert open_evaluation(mine).fingerprint() != first


def test_a_part_without_documents_is_refused():
    @EVALUATIONS.register("hollow")
    @dataclasses.dataclass(frozen=True)
    class Hollow:
        argument_name = ""

        def parts(self):
            return [Part("the package", dict, lambda: iter(()))]

    try:
        assert refusal("hollow") == "the package: holds no document"
    finally:
        del EVALUATIONS._classes["hollow"]


# --- documents ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ({"text": ""}, "is empty"),
        ({"text": " \n\t"}, "is empty"),
        ({"text": "a\ud800b"}, "is not Unicode text at character 1 (surrogates not allowed)"),
        ({"text": "x" * (MAX_TEXT_BYTES + 1)}, "has 16,777,217 bytes of text; at most 16,777,216"),
        ({"domain": ""}, "the domain '' is no label"),
        ({"domain": "x" * 101}, "is no label: 1 to 100 printable characters"),
        ({"language": "e\x1b[31mn"}, r"the language 'e\x1b[31mn' is no label"),
        ({"difficulty": float("nan")}, "the difficulty is nan, not a finite number"),
        ({"parallel": -1}, "the parallel id is -1; must be in [0, 2147483647]"),
        ({"parallel": 1 << 31}, "the parallel id is 2147483648"),
        ({"tags": ((0, 2, "N"), (1, 3, "V"))}, "the tag 'V' at [1, 3) is out of order or place"),
        ({"tags": ((2, 2, "N"),)}, "the tag 'N' at [2, 2) is out of order or place"),
        ({"tags": ((-1, 2, "N"),)}, "is out of order or place"),
        ({"tags": ((0, 9, "N"),)}, "is out of order or place"),
        ({"tags": ((0, 1, ""),)}, "the tag '' is no label"),
    ],
)
def test_a_document_that_breaks_its_contract(change, message):
    sound = EvaluationDocument("good", "law", "en", 1.0, 3, ((0, 2, "N"), (2, 4, "V")))
    check_document(sound, "here", 1)
    with pytest.raises(ConfigError) as caught:
        check_document(dataclasses.replace(sound, **change), "here", 7)
    assert str(caught.value).startswith("here: document 7: ")
    assert message in str(caught.value)


def test_pieces_are_whole_paragraphs():
    text = "\n\n".join(f"paragraph {i} " + "x" * (i % 50) for i in range(100)) + "\n\n\n\n \n"
    cut = list(pieces(text, size=200))
    assert "\n\n".join(piece.removesuffix("\n") for piece in cut) == text.rstrip()
    assert all(len(piece) <= 201 for piece in cut)
    assert all(len(a) + len(b.split("\n\n")[0]) > 198 for a, b in itertools.pairwise(cut))
    assert list(pieces("y" * 999, size=200)) == ["y" * 999 + "\n"]
    assert list(pieces(" \n\n\n")) == []
