"""Bring models in from Hugging Face files, take them out again, and prove that nothing was lost.

usage:
  python -m tools.convert import --from=DIR|FILE.gguf --to=RUN [flags]
  python -m tools.convert export --from=RUN --to=DIR [flags]
  python -m tools.convert verify --from=DIR|FILE.gguf --to=RUN [flags]

examples:
  python -m tools.convert import --from=SmolLM2-135M.gguf --to=runs/smollm2
  python -m tools.convert import --from=Mixtral-8x7B --to=runs/mixtral --dtype=bfloat16
  python -m tools.convert export --from=runs/top_k --to=exported --dtype=bfloat16
  python -m tools.convert verify --from=Mixtral-8x7B --to=runs/mixtral

`import` makes a run directory, `export` a directory that transformers opens, `verify` compares
every tensor of a source with what an export of the run would write, bit for bit. Nothing is fetched
from a network, nothing is unpickled. See docs/interop.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from moejax.config import ConfigError, nearest
from moejax.interop import Layout, export, import_model, open_source, pad_experts, plan_export
from moejax.interop.exporting import EXPORT_DTYPES, choose_family
from moejax.interop.families import family_of
from moejax.interop.rundir import open_model, require_empty, tokenizer_of, write_run
from moejax.interop.verifying import verify
from moejax.train.cli import launch
from moejax.train.progress import make_progress

_FROM = flags.DEFINE_string("from", "", "What is read: a directory, a .gguf file, or a run.")
_TO = flags.DEFINE_string("to", "", "What is written, or compared with.")
_DTYPE = flags.DEFINE_string(
    "dtype", "", "import: float32 (default) or bfloat16 parameters. export: float32, bfloat16 or "
    "float16 tensors; default: as they came, or as they are stored.",
)  # fmt: skip
_SKIP = flags.DEFINE_list("skip", [], "import: patterns of tensors to leave out.")
_IGNORE = flags.DEFINE_list("ignore", [], "import: keys of config.json that change nothing.")
_MAX_SEQ_LEN = flags.DEFINE_integer("max_seq_len", 0, "import: bound of the length; 0: theirs.")
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "import: bytes, for a model without one.")
_CORPUS = flags.DEFINE_string("corpus", "embedded", "import: text of the run's evaluations.")
_SEQ_LEN = flags.DEFINE_integer("seq_len", 0, "import: window of that text; 0: 512 at most.")
_CACHE = flags.DEFINE_string("cache_dir", "", "import: where prepared text is kept.")
_FAMILY = flags.DEFINE_string("family", "", "export: model_type; default: what it was, or fits.")
_FUSED = flags.DEFINE_bool("fused", False, "export: experts in two 3-D tensors per layer.")
_PAD = flags.DEFINE_bool("pad_experts", False, "export: pad experts of different widths by zeros.")
_SHARD = flags.DEFINE_integer("shard_mb", 5 << 10, "export: most MiB of one file.", lower_bound=1)

COMMAND = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""


def run_import() -> None:
    """A source becomes a run directory."""
    if (dtype := _DTYPE.value or "float32") not in ("float32", "bfloat16"):
        raise ConfigError(f"--dtype={dtype}: parameters are float32 or bfloat16")
    require_empty(_TO.value)
    source = open_source(_FROM.value)
    progress = make_progress(5.0)
    try:
        found = import_model(
            source,
            param_dtype=dtype,
            max_seq_len=_MAX_SEQ_LEN.value or None,
            skip=_SKIP.value,
            ignore=_IGNORE.value,
            progress=progress.data,
        )
    finally:
        progress.close()
    data: dict[str, str | int] = {"corpus": _CORPUS.value, "cache_dir": _CACHE.value}
    if _SEQ_LEN.value:
        data["seq_len"] = _SEQ_LEN.value
    write_run(
        _TO.value,
        found,
        source,
        tokenizer=_TOKENIZER.value,
        data=data,
        ignore=_IGNORE.value,
        argv=sys.orig_argv,
    )
    print(f"{found.account}: {found.family.model_type} -> {Path(_TO.value).resolve()}")


def run_export() -> None:
    """A run becomes a directory that transformers opens."""
    if _DTYPE.value and _DTYPE.value not in EXPORT_DTYPES:
        raise ConfigError(f"--dtype={_DTYPE.value}: known: {', '.join(EXPORT_DTYPES)}")
    opened = open_model(_FROM.value)
    model, tree, layout = opened.model, opened.tree, opened.layout
    if _PAD.value:
        model, tree, cost = pad_experts(model, tree)
        print(cost)
    carried = opened.carried
    if carried is None:
        try:
            carried = tokenizer_of(_FROM.value)
        except ConfigError as error:
            print(f"without a tokenizer: {error}")
    family = family_of(_FAMILY.value, "--family") if _FAMILY.value else opened.family
    family = family or choose_family(model)
    if family is not opened.family:
        layout = None
    if _FUSED.value:
        moe = frozenset(index for index, layer in enumerate(model.plan()) if layer)
        layout = Layout(moe, layout.interleaved if layout else family.interleaved)
    plan = plan_export(
        model,
        family,
        layout=layout,
        dtype=_DTYPE.value,
        dtypes=opened.dtypes,
        original=opened.original if family is opened.family else None,
        ignore=opened.ignore,
        carried=carried,
    )
    target = Path(_TO.value)
    files = export(target, plan, tree, shard_bytes=_SHARD.value << 20)
    print(f"{len(plan.links)} tensors of step {opened.step} as {family.model_type}: "
          f"{', '.join(files[:12])} in {target.resolve()}")  # fmt: skip


def run_verify() -> None:
    """Every tensor of a source against the run."""
    print(verify(open_source(_FROM.value), open_model(_TO.value)))


COMMANDS = {"import": run_import, "export": run_export, "verify": run_verify}


def main(argv: list[str]) -> None:
    """Runs the command that was named."""
    del argv
    if COMMAND not in COMMANDS:
        hint = nearest(COMMAND, COMMANDS)
        raise ConfigError(f"{COMMAND or 'no command'}: known: {', '.join(COMMANDS)}{hint}")
    for flag in (_FROM, _TO):
        if not flag.value:
            raise ConfigError(f"--{flag.name}: is required by {COMMAND}")
    COMMANDS[COMMAND]()


if __name__ == "__main__":
    launch(main)
