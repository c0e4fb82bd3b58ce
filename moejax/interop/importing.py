"""Import: tensors of a source into our parameters, with every tensor accounted for."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from moejax.config import ConfigError
from moejax.interop.families import Family, Layout, family_of
from moejax.interop.hf_config import HfConfig
from moejax.interop.links import Link, Tree
from moejax.interop.safetensors import shown
from moejax.interop.source import Source
from moejax.models.config import ModelConfig
from moejax.models.transformer import Transformer

FLOATS = ("F32", "F16", "BF16")
"""What a weight may be: what float32 holds without rounding."""
_NAMED = 5
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"

Progress = Callable[[str, int, int], None]
"""(stage, done, total)."""


def silent(stage: str, done: int, total: int) -> None:
    """Shows nothing."""
    del stage, done, total


@dataclasses.dataclass(frozen=True)
class Account:
    """What became of the tensors of a source.

    Attributes:
      mapped: tensors whose numbers are in our parameters, each exactly once.
      skipped: tensors that the caller told to leave out.
      duplicates: tensors that hold the same bytes as another that was mapped (a tied head).
      rounded: mapped tensors whose numbers our dtype cannot hold exactly.
    """

    mapped: int
    skipped: tuple[str, ...]
    duplicates: tuple[str, ...]
    rounded: tuple[str, ...]

    def __str__(self) -> str:
        parts = ["0 missing", "0 unexpected", f"{self.mapped} mapped"]
        for names, what in (
            (self.skipped, "skipped by --skip"),
            (self.duplicates, "equal to the embedding"),
            (self.rounded, "rounded"),
        ):
            if names:
                parts.append(f"{len(names)} {what}")
        return ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class Imported:
    """A model in our terms.

    Attributes:
      family, layout: what it was.
      model: its config.
      params, router_state: NumPy arrays in the trees of `Transformer.init`.
      dtypes: dtype of each mapped tensor in the source, by name.
      account: the books.
    """

    family: Family
    layout: Layout
    model: ModelConfig
    params: Tree
    router_state: Tree
    dtypes: dict[str, str]
    account: Account


def read_model(
    source: Source, *, max_seq_len: int | None = None, ignore: Sequence[str] = ()
) -> tuple[Family, ModelConfig]:
    """The family of a source and our config of its model.

    Raises:
      ConfigError: it is of no known family, or says what our models are not.
    """
    where = str(source.where / "config.json") if source.where.is_dir() else str(source.where)
    family = family_of(source.config.get("model_type"), where)
    config = HfConfig(source.config, where, ignore)
    try:
        model = family.read_config(config, max_seq_len)
        config.finish()
        model.validate("model")
    except ConfigError as error:
        said = str(error)
        raise ConfigError(
            said if said.startswith((where, "max_seq_len")) else f"{where}: {said}"
        ) from None
    return family, model


def import_model(
    source: Source,
    *,
    param_dtype: str = "float32",
    max_seq_len: int | None = None,
    skip: Sequence[str] = (),
    ignore: Sequence[str] = (),
    progress: Progress = silent,
) -> Imported:
    """Reads a whole model, one tensor at a time.

    Beside the parameters themselves, no more than two tensors are in memory.

    Args:
      source: where tensors and config come from.
      param_dtype: "float32" or "bfloat16", of our parameters (routers stay float32).
      max_seq_len: bound of the length; None: the config's.
      skip: patterns (`fnmatch`) of tensors to leave out, such as `model.layers.61.*` for
        DeepSeek-V3's multi-token prediction.
      ignore: keys of config.json that the caller knows to be harmless.
      progress: told of tensors done.

    Raises:
      ConfigError: unknown family, a config that our models cannot express, or tensors that are
        missing, unexpected, or of the wrong shape or dtype, by name.
    """
    family, model = read_model(source, max_seq_len=max_seq_len, ignore=ignore)
    model = dataclasses.replace(model, param_dtype=param_dtype)
    names = set(source.names())
    skipped = {name for name in names if any(fnmatch.fnmatchcase(name, p) for p in skip)}
    for pattern in skip:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"--skip={pattern}: {source.where} has no such tensor")
    layout = family.layout(source.config, names - skipped)
    # A hostile config could ask for millions of tensors; of many more than there are, most are
    # missing, and a few names say so.
    links = list(itertools.islice(family.links(model, layout), 2 * len(names) + 10_000))
    duplicates = tied_head(source, model, names - skipped)
    # Before anything is allocated: sizes that no tensor has are a stranger's word only.
    _check(source, links, names - skipped - set(duplicates))
    tree = allocate(model)
    check_coverage(links, tree, str(source.where))
    dtypes, rounded = {}, []
    for done, link in enumerate(links):
        progress("reading tensors", done, len(links))
        dtypes[link.name] = source.dtype(link.name)
        parts = link.split(source.read(link.name))
        for target, part in zip(link.targets, parts, strict=True):
            view = target.view(tree)
            if not np.can_cast(part.dtype, view.dtype, "safe") and link.name not in rounded:
                rounded.append(link.name)
            view[...] = part
    progress("reading tensors", len(links), len(links))
    account = Account(len(links), tuple(sorted(skipped)), duplicates, tuple(rounded))
    return Imported(family, layout, model, tree["params"], tree["router_state"], dtypes, account)


def allocate(model: ModelConfig) -> Tree:
    """`{params, router_state}` of a model, NumPy arrays of the right shapes and no content."""
    shapes = jax.eval_shape(Transformer(model).init, jax.random.key(0))
    params, state = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
    return {"params": params, "router_state": state}


def check_coverage(links: Sequence[Link], tree: Tree, where: str) -> None:
    """Raises ConfigError unless the links hold exactly as many numbers as the trees do.

    Two links to one place would leave another place empty, which the sum of their sizes shows
    where every link fits its target (`import_model` assigns, so shapes must agree)."""
    held = sum(int(np.prod(link.shape)) for link in links)
    own = sum(leaf.size for leaf in jax.tree.leaves(tree))
    if held != own:
        raise ConfigError(
            f"{where}: the family's tensors hold {held} numbers but the model has {own}"
        )


def tied_head(source: Source, model: ModelConfig, names: set[str]) -> tuple[str, ...]:
    """A head that is stored although it is the embedding, as some files do."""
    if not model.tied_embeddings or not {HEAD, EMBEDDING} <= names:
        return ()
    head, table = source.read(HEAD), source.read(EMBEDDING)
    if head.shape != table.shape or head.tobytes() != table.tobytes():
        raise ConfigError(
            f"{source.where}: tensor {HEAD!r} differs from {EMBEDDING!r}, but config.json says "
            "tie_word_embeddings=true: one of the two is wrong"
        )
    return (HEAD,)


def _check(source: Source, links: Sequence[Link], names: set[str]) -> None:
    """Raises ConfigError naming what is missing, unexpected, or not what the model needs."""
    expected = {link.name: link for link in links}
    missing = [name for name in expected if name not in names]
    unexpected = sorted(names - set(expected))
    if missing or unexpected:
        said = f"{len(missing)} missing, {len(unexpected)} unexpected, "
        said += f"{len(expected) - len(missing)} would map"
        for what, found in (("missing", missing), ("unexpected", unexpected)):
            if found:
                said += f"; {what}: {_some(found)}"
        hint = "; --skip=PATTERN leaves tensors out" if unexpected and not missing else ""
        raise ConfigError(f"{source.where}: {said}{hint}")
    for name, link in expected.items():
        dtype, shape = source.dtype(name), source.shape(name)
        if dtype not in FLOATS:
            raise ConfigError(
                f"{source.where}: tensor {shown(name)} is {dtype}; a weight is one of "
                f"{', '.join(FLOATS)}"
            )
        if shape != link.shape:
            raise ConfigError(
                f"{source.where}: tensor {shown(name)} has shape {list(shape)}, but config.json "
                f"makes it {list(link.shape)}"
            )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(shown(name) for name in names[:_NAMED]) + more
