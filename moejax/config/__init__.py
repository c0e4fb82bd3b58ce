"""Strict configuration: knobs, registries, composition, files, durations. Imports no jax."""

from moejax.config.argument import parse_argument
from moejax.config.compose import (
    build,
    check,
    config_hash,
    diff,
    format_diff,
    to_config_dict,
    to_plain,
)
from moejax.config.durations import to_steps
from moejax.config.files import read_json, write_bytes_atomic, write_json
from moejax.config.knobs import ConfigError, knob, nearest
from moejax.config.override import override
from moejax.config.registry import Registry

__all__ = [
    "ConfigError",
    "Registry",
    "build",
    "check",
    "config_hash",
    "diff",
    "format_diff",
    "knob",
    "nearest",
    "override",
    "parse_argument",
    "read_json",
    "to_config_dict",
    "to_plain",
    "to_steps",
    "write_bytes_atomic",
    "write_json",
]
