"""An imported model as a run directory, and a run directory as something to export.

The directory is one of `experiments.train` before its first step (`moejax.train.newrun`; state
`imported`): every tool that opens runs opens it, and the trainer goes on from its checkpoint. What
came with the model lies in `huggingface/`: its config.json, its tokenizer, and `import.json`.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from moejax.config import (
    ConfigError,
    build,
    check,
    read_json,
    write_bytes_atomic,
    write_json,
)
from moejax.data import DataConfig, prepare
from moejax.interop.families import Family, Layout, family_of
from moejax.interop.importing import Imported
from moejax.interop.links import Tree
from moejax.interop.own_tokenizer import own_tokenizer_files
from moejax.interop.source import CARRIED, Source
from moejax.models.config import ModelConfig
from moejax.models.transformer import Transformer
from moejax.train import Experiment
from moejax.train.checkpoint import Checkpoints
from moejax.train.layout import make_layout
from moejax.train.newrun import fill, new_run
from moejax.train.optimizer import make_optimizer
from moejax.train.rundir import FORMAT_VERSION, RunDir, check_format
from moejax.train.schedule import multiplier
from moejax.train.state import TrainState, make_init

BESIDE = "huggingface"
IMPORT = "import.json"
SEQ_LEN = 512
RECORD = {
    "family": str,
    "dtype": str,
    "interleaved": bool,
    "fused": list,
    "ignored_keys": list,
    "skipped": list,
    "other_dtypes": dict,
}
"""What is read of `import.json`, with its type."""


def write_run(
    root: str | os.PathLike[str],
    found: Imported,
    source: Source,
    *,
    tokenizer: str = "",
    data: Mapping[str, Any] | None = None,
    ignore: Sequence[str] = (),
    argv: Sequence[str] = (),
) -> Experiment:
    """Makes a run directory of an imported model. Its parameters are given up on the way.

    Args:
      root: an empty directory, or one to be made.
      found: the model.
      source: where it came from; what it carries is kept.
      tokenizer: name of a registered tokenizer to use instead of the model's own, e.g. "bytes".
      data: knobs of `DataConfig` that differ from its defaults.
      ignore: keys of the config that were declared harmless.
      argv: command line for env.json.

    Raises:
      ConfigError: the directory holds something; there is no tokenizer, or it does not fit.
    """
    with new_run(root) as run:
        beside = run.root / BESIDE
        for name, content in source.carried().items():
            write_bytes_atomic(beside / name, content)
        write_json(beside / "config.json", source.config)
        experiment = _experiment(found, beside, tokenizer, dict(data or {}))
        write_json(beside / IMPORT, _import_record(found, source, ignore))
        fill(run, experiment, found.params, found.router_state, state="imported", argv=argv)
        return experiment


def _experiment(found: Imported, beside: Path, tokenizer: str, data: dict[str, Any]) -> Experiment:
    own = beside / "tokenizer.json"
    if not tokenizer:
        if not own.exists():
            raise ConfigError(
                f"{beside.parent}: the model came without a tokenizer.json; say --tokenizer=bytes "
                "to use it on bytes all the same"
            )
        data |= {"tokenizer": "pretrained", "tokenizer_file": str(own.resolve())}
    else:
        data |= {"tokenizer": tokenizer}
    seq_len = data.pop("seq_len", min(SEQ_LEN, found.model.max_seq_len))
    experiment = Experiment(
        model=found.model,
        name=beside.parent.name,
        data=DataConfig(**data, seq_len=seq_len),
    )
    check(experiment)
    return experiment


def _import_record(found: Imported, source: Source, ignore: Sequence[str]) -> dict[str, Any]:
    ((default, _),) = collections.Counter(found.dtypes.values()).most_common(1)
    return {
        "format_version": FORMAT_VERSION,
        "source": source.where.name,
        "family": found.family.model_type,
        "account": str(found.account),
        "mapped": found.account.mapped,
        "skipped": list(found.account.skipped),
        "rounded": list(found.account.rounded),
        "fused": sorted(found.layout.fused),
        "interleaved": found.layout.interleaved,
        "ignored_keys": list(ignore),
        "dtype": default,
        "other_dtypes": {n: d for n, d in found.dtypes.items() if d != default},
    }


def _optimizer(experiment: Experiment) -> Any:
    schedule = multiplier(experiment.schedule, experiment.total_steps, experiment.tokens_per_step)
    return make_optimizer(experiment.optimizer, schedule)


@dataclasses.dataclass(frozen=True)
class OpenedModel:
    """What an export needs of a run.

    Attributes:
      model: its config.
      step: of the checkpoint.
      tree: `{params, router_state}`.
      family: what it was imported from, or None.
      layout, dtypes, original, ignore, carried: of the import (`plan_export`).
      skipped: tensors that the import was told to leave out.
    """

    model: ModelConfig
    step: int
    tree: Tree
    family: Family | None = None
    layout: Layout | None = None
    dtypes: Mapping[str, str] | None = None
    original: Mapping[str, Any] | None = None
    ignore: Sequence[str] = ()
    carried: Mapping[str, bytes] | None = None
    skipped: frozenset[str] = frozenset()


def _experiment_of(root: str | os.PathLike[str]) -> tuple[RunDir, Experiment]:
    run = RunDir(Path(root))
    if not run.config.exists():
        raise ConfigError(f"{root}: is no run directory: it has no config.json")
    record = read_json(run.config)
    check_format(run.config, record)
    return run, build(Experiment, record["config"])


def tokenizer_of(root: str | os.PathLike[str]) -> dict[str, bytes]:
    """Tokenizer files of a run that was trained here; its data are prepared again if they are gone.

    Raises:
      ConfigError: its text is gone, too, or its tokenizer has no such files.
    """
    _, experiment = _experiment_of(root)
    return own_tokenizer_files(prepare(experiment.data).tokenizer)


def open_model(root: str | os.PathLike[str]) -> OpenedModel:
    """The newest checkpoint of a run, with what it was imported from if it was.

    Raises:
      ConfigError: no run is there, it has no checkpoint, or the record of its import is damaged.
      StorageError: its checkpoints are damaged.
    """
    run, experiment = _experiment_of(root)
    beside = run.root / BESIDE
    imported = _read_record(beside / IMPORT) if (beside / IMPORT).exists() else None
    model = Transformer(experiment.model)
    if experiment.checkpoint.dir:
        raise ConfigError(
            f"{root}: its checkpoints are in {experiment.checkpoint.dir}; copy them to "
            f"{run.checkpoints} and clear config.checkpoint.dir to export it"
        )
    if not run.checkpoints.exists():
        raise ConfigError(f"{root}: holds no checkpoint; has the run saved one?")
    if experiment.finetune is not None:
        raise ConfigError(
            f"{root}: is fine-tuned, and its checkpoints hold the base and what was trained apart; "
            f"merge them first: python -m tools.adapter merge --adapter={root} --to=DIR"
        )
    abstract: TrainState = jax.eval_shape(
        make_init(model, _optimizer(experiment)), jax.ShapeDtypeStruct((), jnp.int32)
    )
    checkpoints = Checkpoints(
        run.checkpoints, run.damaged, experiment.checkpoint.keep, make_layout(abstract, {}, None)
    )
    try:
        restored = checkpoints.restore_newest(print)
    finally:
        checkpoints.close()
    if restored is None:
        raise ConfigError(f"{root}: holds no checkpoint; has the run saved one?")
    state, clock = restored
    tree = {"params": state.params, "router_state": state.router_state}
    carried = {n: (beside / n).read_bytes() for n in CARRIED if (beside / n).is_file()}
    opened = OpenedModel(experiment.model, clock.step, tree, carried=carried or None)
    if imported is None:
        return opened
    family = family_of(imported["family"], str(beside / IMPORT))
    layout = Layout(frozenset(imported["fused"]), bool(imported["interleaved"]))
    dtypes = {link.name: imported["dtype"] for link in family.links(experiment.model, layout)}
    return dataclasses.replace(
        opened,
        family=family,
        layout=layout,
        dtypes=dtypes | imported["other_dtypes"],
        original=read_json(beside / "config.json"),
        ignore=tuple(imported["ignored_keys"]),
        skipped=frozenset(imported["skipped"]),
        carried=carried,
    )


def _read_record(path: Path) -> dict[str, Any]:
    """Reads `import.json`.

    Raises:
      ConfigError: not JSON, another version, or a field that is absent or of another type.
    """
    record = read_json(path)
    check_format(path, record)
    for key, kind in RECORD.items():
        if not isinstance(record.get(key), kind):
            raise ConfigError(
                f"{path}: {key} is {record.get(key)!r:.40}, not a {kind.__name__}: damaged; "
                "import the model again"
            )
    return record
