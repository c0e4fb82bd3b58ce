"""Generation: texts written token by token with a key-value cache (docs/generation.md)."""

from moejax.probe.generation.generator import Completion, Generator, Request
from moejax.probe.generation.printing import Printer
from moejax.probe.generation.prompts import read_prompts
from moejax.probe.generation.sampling import Sampling
from moejax.probe.generation.text import TextStream, for_terminal

__all__ = [
    "Completion",
    "Generator",
    "Printer",
    "Request",
    "Sampling",
    "TextStream",
    "for_terminal",
    "read_prompts",
]
