"""Tables for papers hold any text without becoming markup, a command or another column."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from test_analysis_hostile import HOSTILE

from moejax.analysis.exports import latex, latex_text, markdown

ROWS = [("Name", "n", "x"), *((text, i, 1.5) for i, text in enumerate(HOSTILE))]


def test_markdown_has_one_line_per_row_and_no_markup():
    lines = markdown(ROWS).splitlines()
    assert len(lines) == len(ROWS) + 1
    assert lines[1] == "| --- | ---: | ---: |"
    for line in lines:
        assert len(re.findall(r"(?<!\\)\|", line)) == 4
        assert not re.search(r"(?<!\\)[`*\[\]<>]", line)
    assert "| \\$\\\\frac\\{x\\}\\{0\\}\\$ | 8 | 1.5 |" in lines


def test_latex_has_no_command_but_its_own():
    body = latex(ROWS, "50 % & more", "t").split(r"\midrule")[1].split(r"\bottomrule")[0]
    lines = body.strip().splitlines()
    assert len(lines) == len(HOSTILE)
    for line in lines:
        assert len(re.findall(r"(?<!\\)&", line)) == 2
        assert not re.search(r"(?<!\\)[#%$^~_](?!\\)", line.replace(r"$\pm$", ""))
    assert latex_text(r"\input{/etc/passwd}") == r"\textbackslash{}input\{/etc/passwd\}"
    assert latex_text("a_b 5 % ± 1") == r"a\_b 5 \% $\pm$ 1"


def test_cells_that_are_no_number_are_a_dash():
    assert markdown([("a",), (float("nan"),), (None,)]).splitlines()[2:] == ["| – |", "| – |"]


@pytest.mark.all
def test_latex_compiles(tmp_path):
    assert shutil.which("pdflatex"), "no pdflatex: apt-get install texlive-latex-recommended"
    ascii_rows = [tuple(str(c).encode("ascii", "ignore").decode() for c in row) for row in ROWS]
    head = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs,textcomp}"
    text = rf"{head}\begin{{document}}{latex(ascii_rows, 'c', 't')}\end{{document}}"
    (tmp_path / "t.tex").write_text(text)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=tmp_path, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
