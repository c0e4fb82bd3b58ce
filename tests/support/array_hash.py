"""The hash that parameters are known by, from the arrays themselves: what headers are held to."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jax

from moejax.train.digest import digests


def hash_of_arrays(params: Any) -> str:
    """16 hexadecimal digits for a tree of parameters in config order: names, shapes, bits."""
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    described = {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "digest": digest}
        for (name, leaf), digest in zip(leaves.items(), digests(list(leaves.values())), strict=True)
    }
    text = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
