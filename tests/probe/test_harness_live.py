"""The evaluation harness itself on a run: our numbers in its tables, whatever the batch."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from probe_runs import SENTENCE

from moejax.config import ConfigError
from moejax.probe import OpenedRun
from moejax.probe.scoring import encode_pair, rolling_spans
from moejax.probe.writer import Writer, open_writer

pytestmark = pytest.mark.lm_eval

REPOSITORY = Path(__file__).resolve().parent.parent.parent
TASKS = REPOSITORY / "examples" / "lm_eval"
NAMES = ("moejax_opposites", "moejax_copies", "moejax_lines")
WORDS = SENTENCE.split()


@pytest.fixture(scope="module")
def writer(trained: OpenedRun) -> Writer:
    return open_writer(trained.root)


def model(writer: Writer, batch_size: int, **options: Any) -> Any:
    from moejax.interop.harness.adapter import MoejaxLM

    return MoejaxLM(writer, batch_size=batch_size, **options)


def request(*args: Any) -> Any:
    return SimpleNamespace(args=args)


def texts(count: int, longest: int) -> list[str]:
    draw = random.Random(4)
    return [" ".join(draw.choices(WORDS, k=draw.randrange(1, longest))) for _ in range(count)]


def test_no_answer_depends_on_the_batch(writer: Writer) -> None:
    one, many = model(writer, 1), model(writer, 5)
    pairs = [request(a, f" {b}") for a, b in zip(texts(6, 30), texts(7, 4)[1:], strict=True)]
    pairs += [request("", "the cat"), request("the cat ", "sat")]
    whole = [request(text) for text in ["", *texts(5, 40)]]
    ways = [{"until": ["."], "max_gen_toks": 5}, {"do_sample": True, "max_gen_toks": 7}]
    prompts = [request(text, ways[n % 2]) for n, text in enumerate(texts(5, 30))]
    prompts += prompts[1:2] * 2
    for a, b in zip(one.loglikelihood(pairs), many.loglikelihood(pairs), strict=True):
        assert a[0] == pytest.approx(b[0], abs=1e-4) and a[1] == b[1]
    first, second = one.loglikelihood_rolling(whole), many.loglikelihood_rolling(whole[::-1])
    np.testing.assert_allclose(first, second[::-1], atol=1e-3)
    assert first[0] == 0.0
    written = many.generate_until(prompts)
    assert one.generate_until(prompts) == written
    assert len({written[1], written[-1], written[-2]}) > 1  # samples of one prompt


def test_windows_and_pairs_are_those_of_the_harness(writer: Writer) -> None:
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    for length in (0, 1, 4, 5, 9, 12, 17):
        ids = list(range(50, 50 + length))
        want = [make_disjoint_window(pair) for pair in get_rolling_token_windows(ids, 7, 4, 1)]
        got = [(list(span.before), list(span.scored)) for span in rolling_spans(ids, 7, 4)]
        assert got == want
    tokenizer = writer.tokenizer
    theirs = SimpleNamespace(
        backend="causal", tok_encode=lambda text: tokenizer.encode(text).tolist()
    )
    for context, continuation in (("the cat", " sat"), ("the ", "cat"), ("a\n", "b")):
        want_pair = TemplateLM._encode_pair(theirs, context, continuation)
        assert tuple(map(list, encode_pair(tokenizer, context, continuation))) == want_pair


def test_a_model_is_made_by_its_registered_name(trained: OpenedRun) -> None:
    from lm_eval.api.registry import get_model

    import moejax.interop.harness.adapter  # noqa: F401 - registers it

    kind = get_model("moejax")
    made = kind.create_from_arg_string(f"run={trained.root},max_length=12", {"batch_size": 2})
    assert made.max_length == 12 and made.rank == 0 and made.world_size == 1
    with pytest.raises(ConfigError, match="model argument pretrained"):
        kind.create_from_arg_string(f"run={trained.root},pretrained=x")
    with pytest.raises(ConfigError, match="max_gen_toks=12: leaves no room"):
        made.generate_until([request("the cat", {"max_gen_toks": 12})])


def evaluate(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.lm_eval", *flags],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}"},
    )


def test_the_command_writes_the_numbers_of_our_own_scoring(
    trained: OpenedRun, writer: Writer, tmp_path: Path
) -> None:
    out = tmp_path / "found.json"
    flags = [f"--run={trained.root}", f"--include_path={TASKS}", f"--out={out}"]
    done = evaluate(*flags, f"--tasks={','.join(NAMES)}", "--max_length=64", "--samples")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert found["step"] == 4 and found["max_length"] == 64 and found["format_version"] == 1
    scorer = writer.scorer(2, 64)
    lines = [json.loads(line)["text"] for line in (TASKS / "lines.jsonl").open()]
    nats, size = 0.0, 0
    for line in lines:
        spans = list(
            rolling_spans(writer.tokenizer.encode(line).tolist(), writer.tokenizer.eos_id, 64)
        )
        nats -= sum(score.total for score in scorer.score(spans))
        size += len(line.encode())
    bits = found["results"]["moejax_lines"]["bits_per_byte,none"]
    assert bits == pytest.approx(nats / size / np.log(2), rel=1e-5)
    assert 0 <= found["results"]["moejax_opposites"]["acc,none"] <= 1
    assert len(found["samples"]["moejax_opposites"]) == 6
    assert "moejax_copies" in done.stdout


def test_an_unknown_task_is_one_line(trained: OpenedRun) -> None:
    done = evaluate(f"--run={trained.root}", f"--include_path={TASKS}", "--tasks=moejax_lins")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: --tasks=moejax_lins: no such task")
