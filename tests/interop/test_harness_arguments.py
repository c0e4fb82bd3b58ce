"""What tasks of the evaluation harness ask of generation, and what a missing package says."""

import sys

import pytest

from moejax.config import ConfigError
from moejax.interop.harness.arguments import generation_arguments
from moejax.probe.generation import Sampling


@pytest.mark.parametrize(
    "given, want",
    [
        ({}, (Sampling(temperature=0.0), 40, ())),
        ({"until": "\n", "max_gen_toks": 7}, (Sampling(temperature=0.0), 7, ("\n",))),
        ({"until": ["a", "b"], "max_new_tokens": 3}, (Sampling(temperature=0.0), 3, ("a", "b"))),
        ({"temperature": 0.5}, (Sampling(temperature=0.5), 40, ())),
        ({"temperature": 0.5, "do_sample": False}, (Sampling(temperature=0.0), 40, ())),
        ({"do_sample": True, "top_k": 5, "top_p": 0.9}, (Sampling(1.0, 5, 0.9), 40, ())),
        ({"do_sample": True, "temperature": 0.0}, (Sampling(temperature=0.0), 40, ())),
        ({"num_beams": 1, "until": None}, (Sampling(temperature=0.0), 40, ())),
    ],
)
def test_arguments_of_tasks(given, want):
    assert generation_arguments(given, 40, seed=0) == want


@pytest.mark.parametrize(
    "given, message",
    [
        ({"num_beams": 4}, "num_beams=4: is not supported"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2: is not supported"),
        ({"temprature": 1.0}, "temprature=1.0: is not supported; did you mean"),
        ({"top_p": 1.5}, "--top_p=1.5"),
    ],
)
def test_arguments_that_would_be_ignored_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        generation_arguments(given, 40, seed=0)


def test_a_missing_package_fails_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.delitem(sys.modules, "moejax.interop.harness.adapter", raising=False)
    with pytest.raises(ConfigError, match=r"pip install '\.\[lm-eval\]'") as refused:
        __import__("moejax.interop.harness.adapter")
    assert "\n" not in str(refused.value)
