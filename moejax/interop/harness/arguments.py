"""What a task of the Harness may ask of generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moejax.config import ConfigError, nearest
from moejax.probe.generation import Sampling

MAX_NEW_TOKENS = 256
"""Written at most where a task does not say (the Harness's own default)."""
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_KNOWN = ("until", *_LENGTHS, "do_sample", "temperature", "top_k", "top_p", "num_beams")


def generation_arguments(
    arguments: Mapping[str, Any], default_length: int, seed: int
) -> tuple[Sampling, int, tuple[str, ...]]:
    """How a task wants its texts: sampling, the most tokens, and what ends a text.

    As in the Harness, greedy unless `do_sample` is true or a temperature above 0 is given without
    it; `default_length` is for tasks that do not say how much they want.

    Raises:
      ConfigError: an argument is unknown or out of its range.
    """
    for name, value in arguments.items():
        if name not in _KNOWN or (name == "num_beams" and value != 1):
            raise ConfigError(
                f"generation argument {name}={value!r}: is not supported"
                f"{nearest(name, _KNOWN) if name not in _KNOWN else ''}; known: {', '.join(_KNOWN)}"
            )
    until = arguments.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    lengths = [arguments[name] for name in _LENGTHS if arguments.get(name) is not None]
    length = int(lengths[0]) if lengths else default_length
    temperature = float(arguments.get("temperature") or 0.0)
    sampled = arguments.get("do_sample")
    if sampled is False:
        temperature = 0.0
    elif sampled and "temperature" not in arguments:
        temperature = 1.0
    sampling = Sampling(
        temperature=temperature,
        top_k=int(arguments.get("top_k") or 0),
        top_p=float(arguments.get("top_p") or 1.0),
        seed=seed,
    )
    sampling.validate()
    return sampling, length, stops
