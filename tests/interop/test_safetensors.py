"""The safetensors reader and writer: what is written comes back, what is wrong is named."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from parity import FIXTURES

from moejax.config import ConfigError
from moejax.interop.safetensors import (
    DTYPES,
    NAMES,
    SafetensorsFile,
    header_bytes,
    write_safetensors,
)


def write(path, tensors, metadata=None):
    shapes = {name: (array.shape, NAMES[array.dtype]) for name, array in tensors.items()}
    write_safetensors(path, shapes, tensors.items(), metadata or {})


def raw_file(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2,), start=0, stop=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path, rng):
    tensors = {}
    for number, (name, dtype) in enumerate(DTYPES.items()):
        shape = [(), (3,), (2, 0, 4), (2, 3)][number % 4]
        bits = rng.integers(0, 2 if name == "BOOL" else 256, (*shape, dtype.itemsize), np.uint8)
        tensors[f"x.{name}"] = bits.view(dtype).reshape(shape)
    write(tmp_path / "a", tensors, {"format": "pt"})
    file = SafetensorsFile(tmp_path / "a")
    assert file.metadata == {"format": "pt"} and list(file.tensors) == list(tensors)
    for name, array in tensors.items():
        got = file.read(name)
        assert got.dtype == array.dtype and got.shape == array.shape
        assert got.tobytes() == array.tobytes()


def test_a_file_of_transformers_reads_and_writes_to_the_same_bytes(tmp_path):
    path = FIXTURES / "mixtral" / "model.safetensors"
    file = SafetensorsFile(path)
    by_place = sorted(file.tensors, key=lambda name: file.tensors[name].start)
    write(tmp_path / "again", {name: file.read(name) for name in by_place}, file.metadata)
    again = SafetensorsFile(tmp_path / "again")
    assert {n: again.read(n).tobytes() for n in by_place} == {
        n: file.read(n).tobytes() for n in by_place
    }
    assert header_bytes({}, {})[8:].strip() == b"{}"


HUGE = 1 << 61
WRONG = {
    "no length": (b"1234", "fewer than the 8"),
    "header longer than the file": ((1000).to_bytes(8, "little") + b"{}", "is cut short"),
    "header of a petabyte": ((1 << 50).to_bytes(8, "little") + b"{}", "no such file"),
    "header that is no JSON": (b"\x02" + bytes(7) + b"{]", "is not JSON"),
    "header that is no UTF-8": (b"\x02" + bytes(7) + b"\xff\xfe", "is not JSON"),
    "header that is a list": (b"\x02" + bytes(7) + b"[]", "is no JSON object"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_file_of_this_format_is_refused(tmp_path, what):
    content, said = WRONG[what]
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        SafetensorsFile(tmp_path / "f")


ENTRIES = {
    "no dtype": {"shape": [2], "data_offsets": [0, 8]},
    "a dtype of another library": entry(dtype="F8_E4M3"),
    "a dtype that is a list": entry(dtype=["F32"]),
    "an object": [1, 2],
    "a negative size": entry(shape=(-2,)),
    "a size that is a float": entry(shape=(2.0,)),
    "a size that is true": entry(shape=(True,)),
    "too many axes": entry(shape=(1,) * 9),
    "a size that overflows": entry(shape=(HUGE, HUGE, 8)),
    "bytes that do not fit the shape": entry(stop=4),
    "bytes behind the file": entry(shape=(4,), stop=16),
    "an end before the start": entry(start=8, stop=0),
    "three offsets": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]},
}


@pytest.mark.parametrize("what", ENTRIES)
def test_a_hostile_entry_is_refused_by_the_name_of_its_tensor(tmp_path, what):
    path = raw_file(tmp_path / "f", {"ok": entry(), "evil\x1b[2J": ENTRIES[what]}, bytes(8))
    with pytest.raises(ConfigError, match=r"tensor 'evil\\x1b\[2J'") as error:
        SafetensorsFile(path)
    assert "\x1b" not in str(error.value) and len(str(error.value).splitlines()) == 1


def test_gaps_overlaps_and_further_bytes_are_refused(tmp_path):
    cases = [
        ({"a": entry(), "b": entry(start=4, stop=12)}, 12, "'b' starts at byte 4.*overlaps"),
        ({"a": entry(), "b": entry(start=12, stop=20)}, 20, "'b' starts at byte 12.*gap"),
        ({"a": entry()}, 9, "9 bytes of tensors, but its header describes 8"),
        ({"a": entry()}, 7, "'a'.*cut short"),
    ]
    for header, size, said in cases:
        with pytest.raises(ConfigError, match=said):
            SafetensorsFile(raw_file(tmp_path / "f", header, bytes(size)))


def test_a_name_that_stands_twice_is_refused(tmp_path):
    one = json.dumps(entry())
    text = f'{{"weight": {one}, "weight": {one}}}'.encode()
    with pytest.raises(ConfigError, match="names 'weight' twice"):
        SafetensorsFile(raw_file(tmp_path / "f", text, bytes(8)))
    deep = b'{"a":' * 100_000
    with pytest.raises(ConfigError, match="is not JSON"):
        SafetensorsFile(raw_file(tmp_path / "f", deep))


def test_a_file_that_shrinks_after_it_was_opened_is_noticed(tmp_path):
    write(tmp_path / "f", {"a": np.ones(4, np.float32)})
    file = SafetensorsFile(tmp_path / "f")
    (tmp_path / "f").write_bytes((tmp_path / "f").read_bytes()[:-4])
    with pytest.raises(ConfigError, match="cut short inside tensor 'a'"):
        file.read("a")
    with pytest.raises(ConfigError, match="no tensor 'b'"):
        file.read("b")


def test_a_write_that_fails_leaves_nothing(tmp_path):
    shapes = {"a": ((2,), "F32"), "b": ((2,), "BF16")}
    arrays = [("a", np.ones(2, np.float32)), ("b", np.ones(3, jnp.bfloat16))]
    with pytest.raises(ValueError, match="is not what was announced"):
        write_safetensors(tmp_path / "f", shapes, arrays, {})
    with pytest.raises(ValueError, match="fewer tensors"):
        write_safetensors(tmp_path / "f", shapes, arrays[:1], {})
    assert list(tmp_path.iterdir()) == []
