"""`import`, `export` and `verify`: models of others. See docs/interop.md."""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from moejax.config import ConfigError
from moejax.interop import Layout, export, import_model, open_source, pad_experts, plan_export
from moejax.interop.exporting import EXPORT_DTYPES, choose_family
from moejax.interop.families import family_of
from moejax.interop.rundir import open_model, tokenizer_of, write_run
from moejax.interop.verifying import verify
from moejax.train.newrun import require_empty
from moejax.train.progress import make_progress
from tools.conversions import value


def define_import() -> None:
    """Flags of `import`."""
    flags.DEFINE_string("from", "", "What is read: a directory, or a .gguf file.")
    flags.DEFINE_string("to", "", "The run directory that is made.")
    flags.DEFINE_string("dtype", "", "Parameters: float32 (default) or bfloat16.")
    flags.DEFINE_list("skip", [], "Patterns of tensors to leave out.")
    flags.DEFINE_list("ignore", [], "Keys of config.json that change nothing.")
    flags.DEFINE_integer("max_seq_len", 0, "Bound of the length; 0: theirs.")
    flags.DEFINE_string("tokenizer", "", "bytes, for a model without one.")
    flags.DEFINE_string("corpus", "embedded", "Text of the run's evaluations.")
    flags.DEFINE_integer("seq_len", 0, "Window of that text; 0: 512 at most.")
    flags.DEFINE_string("cache_dir", "", "Where prepared text is kept.")


def define_export() -> None:
    """Flags of `export`."""
    flags.DEFINE_string("from", "", "The run directory that is read.")
    flags.DEFINE_string("to", "", "The directory that is made.")
    flags.DEFINE_string(
        "dtype", "", "Tensors: float32, bfloat16 or float16; default: as they came, or as they are "
        "stored.",
    )  # fmt: skip
    flags.DEFINE_string("family", "", "model_type; default: what it was, or fits.")
    flags.DEFINE_bool("fused", False, "Experts in two 3-D tensors per layer.")
    flags.DEFINE_bool("pad_experts", False, "Pad experts of different widths by zeros.")
    flags.DEFINE_integer("shard_mb", 5 << 10, "Most MiB of one file.", lower_bound=1)


def define_verify() -> None:
    """Flags of `verify`."""
    flags.DEFINE_string("from", "", "What is read: a directory, or a .gguf file.")
    flags.DEFINE_string("to", "", "The run directory it is compared with.")


def run_import() -> None:
    """A source becomes a run directory."""
    if (dtype := value("dtype") or "float32") not in ("float32", "bfloat16"):
        raise ConfigError(f"--dtype={dtype}: parameters are float32 or bfloat16")
    require_empty(value("to"))
    source = open_source(value("from"))
    progress = make_progress(5.0)
    try:
        found = import_model(
            source,
            param_dtype=dtype,
            max_seq_len=value("max_seq_len") or None,
            skip=value("skip"),
            ignore=value("ignore"),
            progress=progress.data,
        )
    finally:
        progress.close()
    data: dict[str, str | int] = {name: value(name) for name in ("corpus", "cache_dir")}
    if value("seq_len"):
        data["seq_len"] = value("seq_len")
    write_run(
        value("to"),
        found,
        source,
        tokenizer=value("tokenizer"),
        data=data,
        ignore=value("ignore"),
        argv=sys.orig_argv,
    )
    print(f"{found.account}: {found.family.model_type} -> {Path(value('to')).resolve()}")


def run_export() -> None:
    """A run becomes a directory that transformers opens."""
    if value("dtype") and value("dtype") not in EXPORT_DTYPES:
        raise ConfigError(f"--dtype={value('dtype')}: known: {', '.join(EXPORT_DTYPES)}")
    opened = open_model(value("from"))
    model, tree, layout = opened.model, opened.tree, opened.layout
    if value("pad_experts"):
        model, tree, cost = pad_experts(model, tree)
        print(cost)
    carried = opened.carried
    if carried is None:
        try:
            carried = tokenizer_of(value("from"))
        except ConfigError as error:
            print(f"without a tokenizer: {error}")
    asked = value("family")
    family = family_of(asked, "--family") if asked else opened.family or choose_family(model)
    if family is not opened.family:
        layout = None
    if value("fused"):
        moe = frozenset(index for index, layer in enumerate(model.plan()) if layer)
        layout = Layout(moe, layout.interleaved if layout else family.interleaved)
    plan = plan_export(
        model,
        family,
        layout=layout,
        dtype=value("dtype"),
        dtypes=opened.dtypes,
        original=opened.original if family is opened.family else None,
        ignore=opened.ignore,
        carried=carried,
    )
    target = Path(value("to"))
    files = export(target, plan, tree, shard_bytes=value("shard_mb") << 20)
    print(f"{len(plan.links)} tensors of step {opened.step} as {family.model_type}: "
          f"{', '.join(files[:12])} in {target.resolve()}")  # fmt: skip


def run_verify() -> None:
    """Every tensor of a source against the run."""
    print(verify(open_source(value("from")), open_model(value("to"))))
