"""Meshes and shards: where arrays live. Nothing here changes a number."""

from moejax.sharding.mesh import AXES, BATCH_AXES, MeshConfig, make_mesh, mesh_devices
from moejax.sharding.rows import Rows
from moejax.sharding.specs import batch_spec, constrain_rows, leaf_spec, tree_shardings

__all__ = [
    "AXES",
    "BATCH_AXES",
    "MeshConfig",
    "Rows",
    "batch_spec",
    "constrain_rows",
    "leaf_spec",
    "make_mesh",
    "mesh_devices",
    "tree_shardings",
]
