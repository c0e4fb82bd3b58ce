"""Write texts with a checkpoint; docs/generation.md.

usage:
  python -m tools.generate --run=DIR --prompt=TEXT [--max_new_tokens=N] [--temperature=T]
      [--top_k=K] [--top_p=P] [--seed=N] [--num_samples=N] [--stop=TEXT] [--json]

On a terminal the text of a single sample appears as it is written, the prompt before it; otherwise
what was written is printed, without the prompt. With several prompts or samples, each has a line
above it; --json prints one object per line.

examples:
  python -m tools.generate --run=runs/quickstart/top_k --prompt='The cat'
  python -m tools.generate --run=runs/quickstart/top_p --prompt='The cat' --temperature=0
  python -m tools.generate --run=runs/quickstart/top_p --prompt_file=prompts.jsonl --json
"""

from __future__ import annotations

import sys
import time

from absl import flags

from moejax.config import ConfigError
from moejax.probe.generation import Printer, Request, Sampling, read_prompts
from moejax.probe.writer import open_writer
from moejax.train.cli import enable_compile_cache, launch

_RUN = flags.DEFINE_string("run", "", "Run directory whose checkpoint writes.")
_PROMPT = flags.DEFINE_multi_string(
    "prompt", [], "What a text begins with; '' for the start of a document; may be repeated."
)
_PROMPT_FILE = flags.DEFINE_multi_string(
    "prompt_file",
    [],
    "File that is a prompt (one final line feed is left out), a .jsonl file with a field `prompt` "
    "in each line, or - for standard input; may be repeated.",
)
_MAX_NEW = flags.DEFINE_integer("max_new_tokens", 128, "Tokens that are written at most.")
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Logits are divided by it; 0: greedy.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Only so many most probable tokens; 0: all.")
_TOP_P = flags.DEFINE_float(
    "top_p", 1.0, "Only the fewest most probable tokens that reach this probability together."
)
_SEED = flags.DEFINE_integer("seed", 0, "Another seed is another text.")
_SAMPLES = flags.DEFINE_integer("num_samples", 1, "Texts for each prompt.")
_STOP = flags.DEFINE_multi_string("stop", [], "Text that ends it; may be repeated.")
_STOP_AT_END = flags.DEFINE_bool("stop_at_end", True, "The end of a document ends the text.")
_JSON = flags.DEFINE_bool("json", False, "One JSON object per text.")
_BATCH = flags.DEFINE_integer("batch_size", 8, "Texts that are written at once.")
_STEP = flags.DEFINE_string("step", "", "Checkpoint; default: the newest whole one.")
_LIFT = flags.DEFINE_bool("lift_capacity", False, "No expert turns a token away.")
_IMPORT = flags.DEFINE_multi_string(
    "import", [], "Your own .py file or module that registers components; may be repeated."
)


def main(argv: list[str]) -> None:
    """Writes texts."""
    del argv
    prompts = read_prompts(_PROMPT.value, _PROMPT_FILE.value)
    sampling = Sampling(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value, _SEED.value)
    check_flags(sampling)
    step = int(_STEP.value) if _STEP.value else None
    writer = open_writer(_RUN.value, step=step, lift_capacity=_LIFT.value, say=note)
    tokenizer = writer.tokenizer
    requests = [
        Request(
            prompt=writer.ids(prompt),
            max_new_tokens=_MAX_NEW.value,
            sampling=sampling,
            sample=sample,
            stop_ids=frozenset({tokenizer.eos_id} if _STOP_AT_END.value else ()),
            stops=tuple(_STOP.value),
        )
        for prompt in prompts
        for sample in range(_SAMPLES.value)
    ]
    generator = writer.generator(_BATCH.value)
    for request in requests:
        generator.check(request)
    longest = max(len(request.prompt) for request in requests) + _MAX_NEW.value
    if longest > writer.trained_length:
        note(f"texts of {longest} tokens: the model was trained on {writer.trained_length}")
    enable_compile_cache(writer.run.experiment.data.cache_path / "xla")
    texts = [prompt for prompt in prompts for _ in range(_SAMPLES.value)]
    printer = Printer(texts, requests, writer.step, as_json=_JSON.value)
    started = time.perf_counter()
    completions = generator.generate(requests, printer.piece)
    seconds = time.perf_counter() - started
    for number, completion in enumerate(completions):
        printer.whole(number, completion)
    written = sum(len(completion.tokens) for completion in completions)
    note(f"{written} tokens in {seconds:.1f} s, compiling included")


def check_flags(sampling: Sampling) -> None:
    """Raises ConfigError for what is wrong whatever the run."""
    if not _RUN.value:
        raise ConfigError("--run: is required, e.g. --run=runs/quickstart/top_k")
    sampling.validate()
    for flag in (_MAX_NEW, _SAMPLES, _BATCH):
        if flag.value < 1:
            raise ConfigError(f"--{flag.name}={flag.value}: must be at least 1")
    if _STEP.value and not (_STEP.value.isdecimal() and len(_STEP.value) < 19):
        raise ConfigError(f"--step={_STEP.value!r}: must be a number of steps")
    if not all(_STOP.value):
        raise ConfigError("--stop='': an empty text is everywhere")


def note(line: str) -> None:
    """A remark, beside the text."""
    print(f"note: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    launch(main)
