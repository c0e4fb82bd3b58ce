"""What a checkpoint makes of a task, and of the general text that it should not forget.

Answers are scored as they are trained: whole examples packed in windows, each seeing itself only
(docs/tasks.md).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.analysis.clusters import clustered_mean
from moejax.analysis.records import numbers
from moejax.config import ConfigError, read_json, write_json
from moejax.data import DataConfig, Dataset, EvalStream, Split, Tokenizer, prepare
from moejax.data.rows import build_rows
from moejax.data.tasks import CHAT, Example, Task
from moejax.data.tasks.encoding import Encoded, encode_examples
from moejax.data.tasks.example import check_template, examples_hash
from moejax.models import Transformer
from moejax.models.block import Tokens
from moejax.models.cross_entropy import sharded_cross_entropy
from moejax.probe.generation import Generator, Request, Sampling
from moejax.probe.opened import OpenedRun, Restored
from moejax.probe.program import predictions
from moejax.train.rundir import check_format

Tree = dict[str, Any]
Say = Callable[[str], None]
FORMAT_VERSION = 1
FOLDER = "tasks"


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
    """How a task is scored.

    Attributes:
      split: of the task.
      length: tokens of a window; 0: those that the base was trained on.
      template: around examples; "": that of the run, else `CHAT`.
      generate: so many examples are also answered by greedy generation.
      general_tokens: of the general text at most, at equal distances; 0: all of it.
      batch_size: windows at once.
    """

    split: str = "test"
    length: int = 0
    template: str = ""
    generate: int = 0
    general_tokens: int = 65536
    batch_size: int = 8

    def validate(self) -> None:
        """Raises ConfigError for numbers below what they may be."""
        for name, least in (("length", 0), ("generate", 0), ("general_tokens", 0)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"--{name}={getattr(self, name)}: must be at least {least}; nearest valid "
                    f"value {least}"
                )
        if self.batch_size < 1:
            raise ConfigError(f"--batch_size={self.batch_size}: nearest valid value 1")
        if self.template:
            check_template(self.template, "--template")


@dataclasses.dataclass(frozen=True)
class Scored:
    """Of each document: its name, scored tokens, nats in all, and tokens that were the best."""

    names: tuple[str, ...]
    count_D: np.ndarray
    nats_D: np.ndarray
    hits_D: np.ndarray

    def rows(self) -> list[dict[str, Any]]:
        """As JSON; `loss` is the mean of a document. Documents without a scored token are not."""
        return [
            {"id": name, "tokens": int(count), "loss": float(nats) / int(count)}
            for name, count, nats in zip(self.names, self.count_D, self.nats_D, strict=True)
            if count
        ]

    def loss(self) -> dict[str, float | None]:
        """Nats per token, with a 95 % interval over documents."""
        return numbers(clustered_mean(self.nats_D, self.count_D.astype(np.float64)))


def score_task(
    run: OpenedRun, restored: Restored, task: Task, options: ScoreOptions, say: Say = print
) -> dict[str, Any]:
    """Returns the content of RUN/tasks/TASK.json.

    Args:
      run: on one device; it may be a base, or tuned for this task or for another.
      restored: one of its checkpoints.
      task: what is asked.
      options: how.
      say: is told what was cut, and how far it is.

    Raises:
      ConfigError: as the task, or as the general text; no prompt fits a window; another tokenizer.
    """
    options.validate()
    own = run.experiment.data
    text = own.general.text if own.general is not None else own
    template = options.template or (own.general.template if own.general is not None else CHAT)
    length = options.length or text.seq_len
    longest = run.experiment.model.max_seq_len
    if length > longest:
        raise ConfigError(
            f"--length={length}: the model's longest is config.model.max_seq_len={longest}; "
            f"nearest valid value {longest}"
        )
    general = general_text(run, text)
    examples = task.examples(options.split)
    encoded = encode_examples(general.tokenizer, examples, template)
    answers = as_split(task, encoded, general.tokenizer)
    answers.num_windows(length)
    packing = answers.packing(length)
    if packing.cut or packing.left_out:
        say(
            f"{task.spec}: of {len(examples)} examples {packing.cut} lose the end of their answer, "
            f"and {packing.left_out} have no room for one, in windows of {length} tokens"
        )
    measure = _Measure(run.model, restored, options.batch_size, length, general.tokenizer.pad_id)
    by_example = measure(answers, np.arange(len(packing.first_W)), [e.id for e in examples])
    by_document = _grouped(by_example, [e.document for e in examples])
    stream = EvalStream(
        general, batch_size=options.batch_size, seq_len=length, max_tokens=options.general_tokens
    )
    held = general.validation
    names = [f"{general.domains[d]}/{n}" for n, d in enumerate(held.doc_domain.tolist())]
    forgotten = measure(held, stream.windows, names)
    exact, generated = _generated(run.model, restored, general.tokenizer, encoded, options, length)
    count = int(by_example.count_D.sum())
    size = sum(len(example.answer.encode()) for example in examples)
    finetune = run.experiment.finetune
    nats = float(by_example.nats_D.sum())
    whole = not (packing.cut or packing.left_out)
    own_hash = run.params_hash(restored.step)
    return {
        "format_version": FORMAT_VERSION,
        "run": str(run.root),
        "name": run.experiment.name,
        "step": restored.step,
        "params_hash": own_hash,
        "base_hash": own_hash if finetune is None else finetune.base_hash,
        "method": "none" if finetune is None else type(finetune.method).registered_name,
        "task": task.spec,
        "task_hash": task_hash(examples, template, length),
        "split": options.split,
        "template": template,
        "length": length,
        "examples": len(examples),
        "documents": len(by_document.rows()),
        "answer_tokens": count,
        "answer_bytes": size,
        "cut": packing.cut,
        "left_out": packing.left_out,
        "answer_loss": by_document.loss(),
        "answer_bits_per_byte": nats / math.log(2.0) / size if whole else None,
        "answer_accuracy": float(by_example.hits_D.sum()) / count,
        "exact_match": exact,
        "generated": generated,
        "general_corpus": text.corpus,
        "general_loss": forgotten.loss(),
        "general_tokens": int(forgotten.count_D.sum()),
        "general_text_hash": _text_hash(general, stream.windows, length),
        "answer_documents": by_document.rows(),
        "general_documents": forgotten.rows(),
    }


def write_score(
    run: OpenedRun, record: dict[str, Any], task: Task, out: Path | None = None
) -> Path:
    """Writes a score; by default to RUN/tasks/TASK.json, or with split and step in its name where
    they are not the test and the step that the run's result is."""
    name = task.name
    if record["split"] != "test":
        name += f"-{record['split']}"
    best = run.result()  # 0 where nothing that was trained is better than the base
    kept = run.steps()[-1] if best is None else best
    if record["step"] != kept:
        name += f"-{record['step']}"
    path = out or run.root / FOLDER / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    return path


def general_text(run: OpenedRun, text: DataConfig) -> Dataset:
    """The text that the run's base was trained on, with its tokenizer.

    Raises:
      ConfigError: its tokenizer is not the one that the run was trained with.
    """
    if run.experiment.data.general is None:
        return run.dataset
    general = prepare(text)
    path = run.root / "data.json"
    recorded = read_json(path)
    check_format(path, recorded)
    if recorded.get("tokenizer_hash") != general.tokenizer_hash:
        raise ConfigError(
            f"{path}: the run was trained with another tokenizer: tokenizer_hash is "
            f"{str(recorded.get('tokenizer_hash'))[:12]!r} there, and "
            f"{general.tokenizer_hash[:12]!r} of what config.data.general.text.corpus="
            f"{text.corpus!r} gives here"
        )
    return general


def task_hash(examples: Sequence[Example], template: str, length: int) -> str:
    """Equal where the same answers are asked in the same words and windows."""
    told = f"{examples_hash(tuple(examples))}\0{template}\0{length}"
    return hashlib.sha256(told.encode()).hexdigest()


def as_split(task: Task, encoded: Sequence[Encoded], tokenizer: Tokenizer) -> Split:
    """Examples as a split of a prepared task, in memory."""
    ends = np.cumsum([len(one) for one in encoded])
    empty = np.zeros(len(encoded), np.uint8)
    ids = np.concatenate([part for one in encoded for part in (one.before, one.answer)])
    return Split(
        name="scored",
        file=Path(task.spec),
        tokens=ids,
        token_class=np.zeros(len(ids), np.uint8),
        doc_ends=ends,
        doc_domain=empty,
        doc_language=empty,
        doc_bytes=empty,
        vocab_size=tokenizer.vocab_size,
        answer_begins=ends - np.array([len(one.answer) for one in encoded]),
    )


class _Measure:
    """Losses of windows by document; one compiled program for all of one length."""

    def __init__(
        self, model: Transformer, restored: Restored, batch_size: int, length: int, pad_id: int
    ) -> None:
        self._batch_size, self._length, self._pad_id = batch_size, length, pad_id
        self._parts = restored.params, restored.router_state
        self._run = jax.jit(functools.partial(_rows, model))

    def __call__(self, split: Split, windows: np.ndarray, names: Sequence[str]) -> Scored:
        count_D, nats_D, hits_D = (np.zeros(len(names)) for _ in range(3))
        padded = np.full(-(-len(windows) // self._batch_size) * self._batch_size, -1, np.int64)
        padded[: len(windows)] = windows
        for window in padded.reshape(-1, self._batch_size):
            batch = build_rows(split, window, self._length, self._pad_id)
            document, mask = batch.pop("document"), batch["loss_mask"] > 0
            batch.pop("index")
            nll_BS, best_BS = jax.device_get(self._run(*self._parts, batch))
            places = document[mask]
            np.add.at(count_D, places, 1)
            np.add.at(nats_D, places, nll_BS[mask].astype(np.float64))
            np.add.at(hits_D, places, best_BS[mask] == batch["targets"][mask])
        return Scored(tuple(names), count_D.astype(np.int64), nats_D, hits_D.astype(np.int64))


def _rows(
    model: Transformer, params: Tree, router_state: Tree, batch: Tree
) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood of each target, and the most probable token at its place."""
    tokens = Tokens(batch["tokens"], batch["positions"], batch["segment_ids"], model.mesh)
    x_BSD, _ = model.hidden(params, router_state, tokens, jax.random.key(0), train=False)
    table_VD = model.head_table(params)
    options: Tree = {"chunk": model.config.loss_chunk, "logits_dtype": model.config.dtypes[2]}
    mask_BS = jnp.ones_like(batch["loss_mask"])
    _, nll_BS = sharded_cross_entropy(
        x_BSD, table_VD, batch["targets"], mask_BS, mesh=model.mesh, **options
    )
    return nll_BS, predictions(x_BSD, table_VD, **options)


def _grouped(scored: Scored, documents: Sequence[str]) -> Scored:
    """Sums of examples by document, in the order in which those come."""
    names = tuple(dict.fromkeys(documents))
    number = {name: n for n, name in enumerate(names)}
    index = np.array([number[name] for name in documents])

    def added(values: np.ndarray) -> np.ndarray:
        return np.bincount(index, values, len(names)).astype(values.dtype)

    return Scored(names, added(scored.count_D), added(scored.nats_D), added(scored.hits_D))


def _generated(
    model: Transformer,
    restored: Restored,
    tokenizer: Tokenizer,
    encoded: Sequence[Encoded],
    options: ScoreOptions,
    length: int,
) -> tuple[float | None, int]:
    """Share of answers that greedy decoding writes to the letter, of the first so many that fit a
    window whole; and how many those are."""
    whole = [one for one in encoded if len(one) <= length][: options.generate]
    if not whole:
        return None, 0
    generator = Generator(
        model,
        restored.params,
        restored.router_state,
        token_bytes=tokenizer.token_bytes,
        pad_id=tokenizer.pad_id,
        batch_size=options.batch_size,
    )
    # One token more than the answer has would be another answer.
    requests = [
        Request(
            prompt=tuple(map(int, one.before)),
            max_new_tokens=len(one.answer),
            sampling=Sampling(temperature=0.0),
            stop_ids=frozenset({tokenizer.eos_id}),
        )
        for one in whole
    ]
    hits = 0
    for one, completion in zip(whole, generator.generate(requests), strict=True):
        wanted = tokenizer.decode(one.answer[:-1]).strip()
        hits += completion.finish == "stop_token" and completion.text.strip() == wanted
    return hits / len(whole), len(whole)


def _text_hash(general: Dataset, windows: np.ndarray, length: int) -> str:
    told = f"{general.manifest_hash}\0{length}\0{windows.tolist()}"
    return hashlib.sha256(told.encode()).hexdigest()
