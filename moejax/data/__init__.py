"""Data: corpora, tokenizers, the prepared dataset and the step-indexed stream. Imports no jax.

`prepare(config)` returns a `Dataset`; `TrainStream`, `MixedStream` (a task and general text) and
`EvalStream` cut it into batches.
"""

from moejax.data.classes import TOKEN_CLASSES
from moejax.data.corpora import CORPORA
from moejax.data.dataset import Dataset, Split, open_dataset
from moejax.data.knobs import DataConfig, General, task_data
from moejax.data.mixed import MixedStream, open_stream
from moejax.data.prepare import prepare
from moejax.data.stream import EvalStream, TrainStream
from moejax.data.tokenizer import TOKENIZERS, Tokenizer

__all__ = [
    "CORPORA",
    "TOKENIZERS",
    "TOKEN_CLASSES",
    "DataConfig",
    "Dataset",
    "EvalStream",
    "General",
    "MixedStream",
    "Split",
    "Tokenizer",
    "TrainStream",
    "open_dataset",
    "open_stream",
    "prepare",
    "task_data",
]
