"""Machines by name: mistakes are one line that names the nearest machine that exists."""

import importlib.util

import pytest

from moejax.config import ConfigError
from moejax.sharding.topology import CHIPS, check_compiler, devices_of, parse_topology


def test_a_name_is_a_machine():
    one = parse_topology("v5p:8x8x4", slices=2)
    assert (one.chip, one.shape, one.num_chips, one.name) == ("v5p", (8, 8, 4), 512, "2x v5p:8x8x4")
    assert parse_topology("V5E:4x8").num_chips == 32


@pytest.mark.parametrize(
    "text, message",
    [
        ("v5q:2x2", "unknown chip 'v5q'; did you mean 'v5p'?"),
        ("v5p", "expected CHIP:SHAPE; nearest valid value v5p:"),
        ("v5e:4xx4", "expected CHIP:SHAPE"),
        ("v5e:3x4", "v5e is not built in this shape; nearest valid value v5e:4x4"),
        ("v5e:32x32", "nearest valid value v5e:16x16"),
        ("v6e:4x2", "nearest valid value v6e:2x4"),
        ("v5p:8x8", "nearest valid value v5p:"),
        ("v5p:3x8x8", "nearest valid value v5p:4x8x8"),
        ("v5p:0x0x0", "nearest valid value v5p:"),
        ("v5p:64x64x64", "nearest valid value v5p:"),
        ("h100:2x16", "nearest valid value h100:2x8"),
    ],
)
def test_mistakes_are_one_line(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_topology(text)
    line = str(caught.value)
    assert f"--topology={text}" in line and message in line and "\n" not in line


def test_the_nearest_shape_exists():
    for text in ("v5p:8x8", "v5p:64x64x64", "v4:1x2x3", "v5e:1", "v6e:9x9x9"):
        with pytest.raises(ConfigError) as caught:
            parse_topology(text)
        near = str(caught.value).rpartition("nearest valid value ")[2]
        assert parse_topology(near).num_chips >= 1


def test_there_is_at_least_one_slice():
    with pytest.raises(ConfigError, match="--slices=0"):
        parse_topology("v5e:2x2", slices=0)


@pytest.mark.parametrize("text, module", [("v5e:2x2", "libtpu"), ("h100:1x8", "jax_cuda12_plugin")])
def test_a_missing_compiler_is_one_line_that_says_what_to_install(monkeypatch, text, module):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (check_compiler, devices_of):
        with pytest.raises(ConfigError, match=f"{module}.* is not installed.*pip install"):
            call(parse_topology(text))


def test_every_chip_has_plausible_figures():
    for name, chip in CHIPS.items():
        assert chip.peak / chip.hbm_bandwidth > 100, name  # FLOPs per byte: all are matrix machines
        assert chip.hbm_bandwidth > chip.ici > chip.dcn > 0, name
        assert chip.axis_bandwidth * max(1, chip.torus) == chip.ici
