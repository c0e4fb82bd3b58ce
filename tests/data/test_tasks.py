"""Tasks of files: splits that nothing moves, templates, and what is refused."""

import re

import pytest
from data_samples import write_jsonl
from task_samples import rows

from moejax.config import ConfigError
from moejax.data.tasks import CHAT, SPLITS, TASKS, Example, open_task, render, split_of
from moejax.data.tasks.example import check_template


def spec_of(folder, examples, options=""):
    write_jsonl(folder / "t.jsonl", examples)
    return f"task:files:{folder}/*.jsonl{options}"


def by_split(spec):
    task = open_task(spec)
    return {split: task.examples(split) for split in SPLITS}


def test_options_move_no_document_to_another_split(tmp_path):
    spec = spec_of(tmp_path, rows(400))
    whole = by_split(spec)
    home = {e.document: split for split in SPLITS for e in whole[split]}
    assert len(home) == 200
    for options in ("?limit=9", "?only=odd", "?only=odd&limit=5"):
        part = by_split(spec + options)
        for split in SPLITS:
            assert {e.document for e in part[split]} <= {d for d, s in home.items() if s == split}
            assert set(part[split]) <= set(whole[split])
            if "limit" in options and "only" not in options:
                assert part[split] == whole[split][:9]
    assert {e.domain for e in by_split(spec + "?only=odd")["train"]} == {"odd"}


def test_documents_are_in_one_split_each_about_one_in_ten_held_out_twice(tmp_path):
    whole = by_split(spec_of(tmp_path, rows(2000)))
    documents = {split: {e.document for e in whole[split]} for split in SPLITS}
    assert not documents["train"] & (documents["validation"] | documents["test"])
    assert not documents["validation"] & documents["test"]
    for split, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        assert len(documents[split]) / 1000 == pytest.approx(share, abs=0.04)
    # The rule is a record: another would mix splits of results that are compared.
    letters = {"train": "t", "validation": "v", "test": "T"}
    assert "".join(letters[split_of("k", str(n))] for n in range(12)) == "vttttTtTtttt"


def test_new_lines_of_a_file_move_none_of_the_old(tmp_path):
    before = by_split(spec_of(tmp_path, rows(200)))
    after = by_split(spec_of(tmp_path, rows(300)))
    for split in SPLITS:
        assert set(before[split]) <= set(after[split])


def test_a_question_that_two_documents_ask_stays_with_the_first(tmp_path):
    examples = rows(60)
    examples += [
        {**one, "prompt": one["prompt"].upper() + " ", "document": f"other {n}"}
        for n, one in enumerate(examples)
    ]
    found = by_split(spec_of(tmp_path, examples))
    kept = [e for split in SPLITS for e in found[split]]
    assert len(kept) == 60 and not any(e.document.startswith("other") for e in kept)


def test_the_same_answer_twice_is_once_and_another_answer_is_kept(tmp_path):
    examples = rows(60)
    again = [dict(examples[0]), {**examples[0], "answer": "another"}]
    found = by_split(spec_of(tmp_path, examples + again))
    assert sum(len(found[split]) for split in SPLITS) == 61


def test_a_line_without_a_document_is_told_by_its_prompt(tmp_path):
    lines = [{"prompt": f"Who is {n}?", "answer": str(n % 3)} for n in range(80)]
    found = by_split(spec_of(tmp_path, lines))
    example = found["train"][0]
    assert example.document == example.prompt.lower()
    assert (example.domain, example.language) == ("text", "und")


def test_fields_by_other_names(tmp_path):
    lines = [{"q": f"{n}?", "a": "yes", "kind": "k"} for n in range(60)]
    found = by_split(spec_of(tmp_path, lines, "?prompt=q&answer=a&domain=kind"))
    assert {e.domain for e in found["train"]} == {"k"}


def test_the_fingerprint_knows_the_text_and_not_its_place(tmp_path):
    one = open_task(spec_of(tmp_path / "a", rows(40))).fingerprint()
    two = open_task(spec_of(tmp_path / "b", rows(40))).fingerprint()
    assert one == two
    assert one != open_task(spec_of(tmp_path / "b", rows(41))).fingerprint()
    limited = open_task(spec_of(tmp_path / "b", rows(40), "?limit=3"))
    assert limited.fingerprint()["options"]["limit"] == 3


def test_names_fit_a_folder(tmp_path):
    assert open_task("law").name == open_task("task:law").name == "law"
    assert re.fullmatch(r"law-[0-9a-f]{8}", open_task("law?only=Permissive").name)
    assert "/" not in open_task(f"task:files:{tmp_path}/*.jsonl").name
    assert set(TASKS.names()) == {
        *("law", "code", "mathematics", "translation", "dialogue", "reasoning", "files")
    }


@pytest.mark.parametrize(
    "spec, message",
    [
        ("files:x/*.jsonl", r"is a corpus, not a task; .* spelled 'task:files:x/\*\.jsonl'"),
        ("task:files", "needs an argument; nearest valid: files:PATTERN"),
        ("laws", "unknown task; did you mean 'law'"),
        ("task:", "names no task"),
        ("law?limt=3", "unknown option 'limt'; did you mean 'limit'"),
        ("law?limit=-1", "limit"),
        ("law:x", "takes no argument"),
        ("translation?target=en", "target='en': is the source's; nearest valid value 'fr'"),
        ("translation?target=la", "target"),
        ("mathematics?tasks=sums", "unknown generator"),
        ("law?shortest=300&longest=100", "nearest valid value 100"),
    ],
)
def test_bad_specs_are_one_line(spec, message):
    with pytest.raises(ConfigError, match=message) as caught:
        open_task(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 2: is not JSON"),
        ("[]", "line 2: is no object"),
        ('{"prompt": "a"}', "line 2: the field 'answer' is absent"),
        ('{"prompt": "a", "answer": 3}', "the field 'answer' is of type int"),
        ('{"prompt": " ", "answer": "b"}', "example 2: the prompt is empty"),
        ('{"prompt": "a", "answer": "\\n"}', "example 2: the answer is empty"),
        ('{"prompt": "a", "answer": "b", "domain": "\\u0007"}', "the domain is no label"),
        ('{"prompt": "a\\ud800", "answer": "b"}', "the prompt is no valid Unicode"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    file = tmp_path / "t.jsonl"
    file.write_text('{"prompt": "p", "answer": "q"}\n' + line + "\n")
    with pytest.raises(ConfigError, match=message) as caught:
        open_task(f"task:files:{file}").examples("train")
    assert "\n" not in str(caught.value)


def test_an_empty_task_or_split_is_refused(tmp_path):
    file = tmp_path / "t.jsonl"
    file.write_text("")
    with pytest.raises(ConfigError, match=r"t\.jsonl: is empty: holds no example"):
        open_task(f"task:files:{file}").examples("train")
    file.write_text('{"prompt": "p", "answer": "q"}\n')
    empty = "train" if split_of("files", "p") != "train" else "test"
    with pytest.raises(ConfigError, match=f"is empty: no example in its split {empty}"):
        open_task(f"task:files:{file}").examples(empty)
    with pytest.raises(ConfigError, match="split='valid': no split of a task; one of train"):
        open_task(f"task:files:{file}").examples("valid")
    with pytest.raises(ConfigError, match="matches no file"):
        open_task(f"task:files:{tmp_path}/*.json").examples("train")
    with pytest.raises(ConfigError, match="only='tset': no domain or language of that name"):
        open_task(f"task:files:{file}?only=tset").examples("train")


def test_the_chat_template():
    example = Example("1", "d", "What is {answer} of 2?", "four", "m", "en")
    assert "".join(render(example)) == "User: What is {answer} of 2?\n\nAssistant: four"
    # White space before the answer is the answer's.
    assert render(example) == ("User: What is {answer} of 2?\n\nAssistant:", " four")
    assert render(example, "Q {prompt}\nA\n{answer}") == ("Q What is {answer} of 2?\nA", "\nfour")
    assert render(example, "{prompt} {answer}") == ("What is {answer} of 2? ", "four")
    check_template(CHAT)
    for bad in ("{prompt}", "{answer}", "{prompt}{prompt}{answer}", "{prompt}{answer}.", ""):
        with pytest.raises(ConfigError, match="at the end; nearest valid value"):
            check_template(bad)
