"""python -m tools.prepare"""

import subprocess
import sys
from pathlib import Path

from data_samples import records, write_jsonl

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def start(*flags):
    command = [sys.executable, "-m", "tools.prepare", *flags]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=pipe, stderr=pipe, text=True)


def test_tables_and_a_mistake(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", records(20))
    corpus, cache = f"--corpus=files:{tmp_path}/*.jsonl", f"--cache_dir={tmp_path}"
    good = start(corpus, cache, "--verify", "--seq_len=16")
    bad = start("--corpus=embeded")
    output, progress = good.communicate()
    assert good.returncode == 0, progress
    assert "a.jsonl  your own" in output
    rows = [line.split() for line in output.splitlines()]
    assert ["train", "19"] in [row[:2] for row in rows]
    assert any(row[:2] == ["baselines", "unigram"] for row in rows)
    assert "storing text: done" in progress
    assert bad.communicate() == (
        "",
        "error: config.data.corpus='embeded': unknown corpus; did you mean 'embedded'?; "
        "known: embedded, files, labelled, task, tfds\n",
    )
    assert bad.returncode == 2
