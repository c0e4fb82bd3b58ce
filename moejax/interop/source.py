"""Where tensors come from: a directory of safetensors files, in one piece or in shards."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from moejax.config import ConfigError, read_json
from moejax.interop.safetensors import SafetensorsFile, TensorInfo, shown

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"

CARRIED = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
"""Files beside the weights that mean nothing to the model and everything to its users: they are
copied, byte for byte, and never executed."""
MAX_CARRIED = 200 << 20
MAX_JSON = 200 << 20


class Source(Protocol):
    """Named tensors with a Hugging Face config: a directory, or a GGUF file seen as one."""

    @property
    def where(self) -> Path:
        """The directory or file, for messages."""

    @property
    def config(self) -> dict[str, Any]:
        """Its config.json."""

    def names(self) -> Iterable[str]:
        """Names of all tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""

    def dtype(self, name: str) -> str:
        """The dtype of a tensor as it is read, by its name in safetensors."""

    def read(self, name: str) -> np.ndarray:
        """A tensor, in memory of its own."""

    def carried(self) -> dict[str, bytes]:
        """Files to keep beside the run, by name (`CARRIED`)."""


@dataclasses.dataclass(frozen=True)
class HfDirectory:
    """A checkpoint directory as `save_pretrained` writes it. Nothing in it is executed.

    Raises:
      ConfigError: no such directory, no safetensors in it, or files that contradict each other.
    """

    where: Path
    config: dict[str, Any]
    files: dict[str, SafetensorsFile]

    @staticmethod
    def open(where: str | os.PathLike[str]) -> HfDirectory:
        """Opens a directory and checks its headers and its index."""
        root = Path(where)
        if not root.is_dir():
            raise ConfigError(f"{root}: is no directory with {CONFIG} and {WEIGHTS}")
        config = read_small_json(root / CONFIG)
        if not isinstance(config, dict):
            raise ConfigError(f"{root / CONFIG}: is no JSON object")
        return HfDirectory(root, config, _open_files(root))

    def names(self) -> Iterable[str]:
        return self.files

    def _info(self, name: str) -> TensorInfo:
        return self.files[name].tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._info(name).shape

    def dtype(self, name: str) -> str:
        return self._info(name).dtype

    def read(self, name: str) -> np.ndarray:
        return self.files[name].read(name)

    def carried(self) -> dict[str, bytes]:
        found = {}
        for name in CARRIED:
            path = self.where / name
            if path.is_file():
                if path.stat().st_size > MAX_CARRIED:
                    raise ConfigError(f"{path}: has more than {MAX_CARRIED >> 20} MiB")
                found[name] = path.read_bytes()
        return found


def read_small_json(path: Path) -> Any:
    """`read_json` of a stranger's file: bounded, and deep nesting is no crash."""
    if path.exists() and path.stat().st_size > MAX_JSON:
        raise ConfigError(f"{path}: has more than {MAX_JSON >> 20} MiB, too much for a JSON file")
    try:
        return read_json(path)
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply") from None


def _open_files(root: Path) -> dict[str, SafetensorsFile]:
    if (root / INDEX).exists():
        shards = _open_shards(root)
        if (root / WEIGHTS).exists() and all(s.path.name != WEIGHTS for s in shards.values()):
            raise ConfigError(
                f"{root}: holds {WEIGHTS} and {INDEX}, which does not name it: which of the two is "
                "the model? Remove the other"
            )
        return shards
    if (root / WEIGHTS).exists():
        file = SafetensorsFile(root / WEIGHTS)
        return dict.fromkeys(file.tensors, file)
    others = sorted(p.name for p in root.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    hint = (
        f"; {others[0]!r} is a pickle, which is never read: convert it with save_pretrained"
        if others
        else ""
    )
    raise ConfigError(f"{root}: holds neither {WEIGHTS} nor {INDEX}{hint}")


def _open_shards(root: Path) -> dict[str, SafetensorsFile]:
    path = root / INDEX
    index = read_small_json(path)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise ConfigError(f"{path}: has no weight_map of tensor names to file names")
    shards: dict[str, SafetensorsFile] = {}
    present = {entry.name for entry in root.iterdir()}
    for name, file in places.items():
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise ConfigError(
                f"{path}: tensor {shown(name)} is in {shown(file)}, which is no safetensors file "
                "of this directory"
            )
        if file not in shards:
            if file not in present:
                raise ConfigError(
                    f"{path}: tensor {shown(name)} is in {shown(file)}, which is missing"
                )
            shards[file] = SafetensorsFile(root / file)
        if name not in shards[file].tensors:
            raise ConfigError(f"{path}: tensor {shown(name)} is not in {shown(file)}")
    for file, shard in shards.items():
        for name in shard.tensors:
            if places.get(name) != file:
                raise ConfigError(
                    f"{path}: tensor {shown(name)} is in {shown(file)}, which the index does not "
                    f"say"
                )
    return {name: shards[file] for name, file in places.items()}


def index_json(total_size: int, places: dict[str, str]) -> bytes:
    """The index of a sharded checkpoint: bytes of all tensors, and the file of each."""
    record = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(places.items()))}
    return (json.dumps(record, indent=2) + "\n").encode()
