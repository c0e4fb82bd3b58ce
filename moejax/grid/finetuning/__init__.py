"""A comparison of fine-tunings: what has to be run, in which order, and the loop that runs it."""

from moejax.grid.finetuning.comparison import Comparison, Treatment
from moejax.grid.finetuning.load import load_comparison
from moejax.grid.finetuning.parts import Part, Places, parts_of
from moejax.grid.finetuning.runner import run_parts

__all__ = [
    "Comparison",
    "Part",
    "Places",
    "Treatment",
    "load_comparison",
    "parts_of",
    "run_parts",
]
