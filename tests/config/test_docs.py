import doctest
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent.parent / "docs" / "config.md"


def test_the_examples_of_docs_config_md_are_true():
    text = DOCS.read_text().replace("```", "")
    examples = doctest.DocTestParser().get_doctest(text, {}, DOCS.name, str(DOCS), 0)
    assert len(examples.examples) > 20
    report = []
    doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF).run(examples, out=report.append)
    assert report == []


def test_the_router_of_contributing_md_is_a_router(monkeypatch):
    from moejax.config import build, to_plain
    from moejax.experts.config import MoeConfig
    from moejax.routing import ROUTERS

    monkeypatch.setattr(ROUTERS, "_classes", dict(ROUTERS._classes))
    text = (DOCS.parent.parent / "CONTRIBUTING.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    exec(compile(code, "CONTRIBUTING.md", "exec"), {"__name__": "contributing"})
    moe = build(MoeConfig, {"router": {"name": "scaled_top_k", "k": 3}})
    assert moe.router.slots(8) == 3
    assert build(MoeConfig, to_plain(moe)) == moe
