"""The kernel is compiled once, kept whole, and never loaded where it could do harm."""

import json
import os
import pwd
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from native_stress import must

from moejax.config import ConfigError
from moejax.experts.native import __main__ as command
from moejax.experts.native import build as building
from moejax.experts.native import isa as isas
from moejax.experts.native import library as loading
from moejax.experts.native.isa import ISAS, Unavailable

AVX512, AVX2 = ISAS

COMPILER = """#!/bin/sh
if [ "$1" = --version ]; then echo "a compiler for tests 1.0"; exit; fi
[ -n "$BROKEN" ] && { echo "x.cc:1: note: hm" >&2; echo "x.cc:2: error: no" >&2; exit 1; }
echo "$@" >> "$CALLS"
[ -n "$SLOW" ] && sleep 0.3
for word; do output=$word; done
echo "as good as compiled" > "$output"
"""


@pytest.fixture
def processor(monkeypatch):
    """One with every instruction set, whatever this one has and is asked for; returns a way to have
    another. What is compiled for it may be loaded, but not called."""

    def has(flags):
        monkeypatch.setattr(isas, "cpu_flags", lambda: flags)
        monkeypatch.setattr(command, "cpu_flags", lambda: flags)

    monkeypatch.delenv("MOEJAX_NATIVE", raising=False)
    has(AVX512.cpu)
    return has


@pytest.fixture
def compiler(tmp_path, monkeypatch, processor):
    """A quick compiler in the place of a real one; returns its calls."""
    script, calls = tmp_path / "c++", tmp_path / "calls"
    script.write_text(COMPILER)
    script.chmod(0o755)
    calls.touch()
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("CALLS", str(calls))
    monkeypatch.setenv("MOEJAX_NATIVE_CACHE", str(tmp_path / "cache"))
    return lambda: [line for line in calls.read_text().splitlines() if "-shared" in line]


def test_it_is_compiled_once(compiler, caplog):
    first = building.build(AVX2)
    assert first.path.read_text() == "as good as compiled\n"
    assert building.build(AVX2) == first
    assert len(compiler()) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "compiling the native expert kernel for avx2 (about 10 s, once)"
    ]
    assert building.build(AVX512).path != first.path
    left = {path.suffix for path in first.path.parent.iterdir()}
    assert left == {".so", ".json", ".lock"}


def test_what_shapes_it_is_in_its_name(compiler, monkeypatch):
    one = building.build(AVX2).key
    monkeypatch.setattr(building, "FLAGS", (*building.FLAGS, "-DX"))
    two = building.build(AVX2).key
    script = Path(os.environ["CXX"])
    script.write_text(COMPILER.replace("1.0", "1.1"))
    assert len({one, two, building.build(AVX2).key}) == 3


@pytest.mark.parametrize("content", [b"", b"as good as comp", b"as bad as compiled\n"])
def test_a_damaged_library_is_compiled_again(compiler, content):
    path = building.build(AVX2).path
    path.write_bytes(content)
    assert building.build(AVX2).path.read_text() == "as good as compiled\n"
    assert len(compiler()) == 2
    path.unlink()
    building.build(AVX2)
    path.with_suffix(".json").write_text("{")
    building.build(AVX2)
    assert len(compiler()) == 4


def test_threads_that_want_it_at_once_compile_it_once(compiler, monkeypatch):
    monkeypatch.setenv("SLOW", "1")
    with ThreadPoolExecutor(4) as pool:
        built = set(pool.map(building.build, [AVX2] * 4))
    assert len(built) == len(compiler()) == 1


@pytest.mark.slow  # for jax is imported four times
def test_processes_that_want_it_at_once_compile_it_once(compiler, monkeypatch):
    monkeypatch.setenv("SLOW", "1")
    code = (
        "from moejax.experts.native.build import build; "
        "from moejax.experts.native.isa import ISAS; print(build(ISAS[1]).path)"
    )
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    paths = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert len(paths) == 1
    assert len(compiler()) == 1


def test_a_failure_is_one_line_and_kept(compiler, monkeypatch):
    monkeypatch.setenv("BROKEN", "1")
    with pytest.raises(Unavailable) as error:
        building.build(AVX2)
    assert str(error.value) == "compiling failed: x.cc:2: error: no"
    monkeypatch.delenv("BROKEN")
    with pytest.raises(Unavailable) as error:
        building.build(AVX2)
    assert str(error.value) == (
        "compiling failed: x.cc:2: error: no (python -m moejax.experts.native tries again)"
    )
    assert not compiler()
    building.build(AVX2, again=True)
    building.build(AVX2)
    assert len(compiler()) == 1


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("MOEJAX_NATIVE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(Unavailable, match=r"^no C\+\+ compiler: g\+\+ or clang\+\+ is not there$"):
        building.build(AVX2)
    monkeypatch.setenv("CXX", "icpx -v")
    with pytest.raises(Unavailable, match=r"^no C\+\+ compiler: icpx is not there \(CXX\)$"):
        building.build(AVX2)


@pytest.mark.parametrize("text, said", [('g++ "-O2', "closing quotation"), ("g++ \\", "escaped")])
def test_a_compiler_that_is_no_command(monkeypatch, tmp_path, text, said):
    monkeypatch.setenv("MOEJAX_NATIVE_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", text)
    with pytest.raises(Unavailable) as error:
        building.build(AVX2)
    message = str(error.value)
    assert message.startswith(f"CXX={text!r}: no {said}")
    assert message.endswith("; nearest valid value CXX=g++")


def test_what_was_compiled_outlives_its_compiler(compiler, monkeypatch, tmp_path):
    built = building.build(AVX2)
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    assert building.build(AVX2) == built
    with pytest.raises(Unavailable, match=r"^no C\+\+ compiler"):
        building.build(AVX512)
    built.path.write_bytes(b"as bad as compiled")
    with pytest.raises(Unavailable, match=r"^no C\+\+ compiler"):
        building.build(AVX2)
    built.path.write_bytes(b"as good as compiled\n")
    assert building.build(AVX2) == built
    monkeypatch.setattr(building, "FLAGS", (*building.FLAGS, "-DX"))
    with pytest.raises(Unavailable, match=r"^no C\+\+ compiler"):
        building.build(AVX2)


def test_a_cache_that_cannot_be_written(compiler, monkeypatch):
    monkeypatch.setenv("MOEJAX_NATIVE_CACHE", "/dev/null/cache")
    with pytest.raises(Unavailable, match=r"^/dev/null.*: cannot write the cache"):
        building.build(AVX2)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("MOEJAX_NATIVE_CACHE", raising=False)
    monkeypatch.setenv("MOEJAX_CACHE", str(tmp_path))
    assert building.cache_directory() == tmp_path / "native"
    monkeypatch.delenv("MOEJAX_CACHE")
    assert building.cache_directory() == Path("~/.cache/moejax/native").expanduser()


def test_a_cache_in_the_home_of_who_has_none(compiler, monkeypatch):
    for name in ("MOEJAX_NATIVE_CACHE", "MOEJAX_CACHE", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    with pytest.raises(Unavailable) as error:
        building.build(AVX2)
    assert str(error.value) == (
        "~/.cache/moejax/native: no home directory; "
        "nearest valid an absolute path in MOEJAX_NATIVE_CACHE"
    )


# --- which one, if any ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, wanted, chosen",
    [
        (AVX512.cpu, "", "avx512"),
        (AVX512.cpu, "avx2", "avx2"),
        (AVX512.cpu, "off", "MOEJAX_NATIVE=off"),
        (AVX2.cpu | {"avx512f"}, "auto", "avx2"),
        (AVX2.cpu, "avx512", "this processor lacks avx512bw avx512dq avx512f avx512vl"),
        (frozenset({"avx2"}), "", "this processor lacks fma"),
        (frozenset(), "", "this processor lacks avx2 fma"),
    ],
)
def test_the_best_that_the_processor_has(flags, wanted, chosen, monkeypatch):
    monkeypatch.setattr(isas, "cpu_flags", lambda: flags)
    monkeypatch.setenv("MOEJAX_NATIVE", wanted)
    if chosen in ("avx512", "avx2"):
        assert isas.choose().name == chosen
    else:
        with pytest.raises(Unavailable) as error:
            isas.choose()
        assert str(error.value) == chosen


def test_an_unknown_word_is_refused(monkeypatch):
    monkeypatch.setenv("MOEJAX_NATIVE", "sse2")
    with pytest.raises(ConfigError) as error:
        isas.choose()
    assert str(error.value) == (
        "MOEJAX_NATIVE='sse2': unknown; nearest valid value one of auto, avx512, avx2, off"
    )


def test_no_cpuinfo_is_no_instruction_set(tmp_path):
    assert isas.cpu_flags(tmp_path / "cpuinfo") == frozenset()
    (tmp_path / "cpuinfo").write_text("processor: 0\nflags\t\t: fpu avx2 fma\nflags: none\n")
    assert isas.cpu_flags(tmp_path / "cpuinfo") == {"fpu", "avx2", "fma"}


# --- loading --------------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch, processor):
    """A process that has loaded nothing yet, and in which nothing may be registered."""
    monkeypatch.setattr(loading, "_loaded", {})
    monkeypatch.setattr(loading, "_refused", {})
    refuse = lambda *_, **__: pytest.fail("a handler was registered")  # noqa: E731
    monkeypatch.setattr(loading.jax.ffi, "register_ffi_target", refuse)


def test_a_handler_newer_than_jaxlib_is_never_registered(fresh, processor, monkeypatch):
    processor(AVX2.cpu)  # every x86 that tests run on has it, and one function of it is called
    must(building.build, AVX2)
    major, minor = loading.runtime_api()
    for older in ((major, minor - 1), (major + 1, minor)):
        monkeypatch.setattr(loading, "_refused", {})
        monkeypatch.setattr(loading, "runtime_api", lambda older=older: older)
        with pytest.raises(Unavailable) as error:
            loading.load()
        assert str(error.value) == (
            f"the kernel needs XLA FFI {major}.{minor}, this jaxlib has {older[0]}.{older[1]}"
        )


def test_a_library_that_is_loaded_asks_for_no_compiler_again(fresh, monkeypatch):
    monkeypatch.setattr(loading, "_register", lambda isa: loading.Library(isa.name, "", "", None))
    library = loading.load()
    monkeypatch.setattr(loading, "_register", lambda isa: pytest.fail("it is made again"))
    assert loading.load() is library


def test_a_library_that_cannot_be_mapped_is_refused(fresh, compiler):
    for _ in range(2):  # the second time without trying
        with pytest.raises(Unavailable, match="cannot be loaded"):
            loading.load()
    assert len(compiler()) == 1


def test_the_command_says_what_it_did(compiler, monkeypatch, capsys):
    monkeypatch.setattr(command, "load", lambda: type("L", (), {"isa": "avx512"}))
    assert command.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "avx512",
        "avx2",
        "programs on this CPU use avx512",
    ]
    monkeypatch.setenv("MOEJAX_NATIVE", "off")
    assert command.main() == 1
    assert capsys.readouterr().out == (
        "no native expert kernel: MOEJAX_NATIVE=off; programs use the back end 'tiles'\n"
    )


def test_a_record_says_how_it_was_made(compiler):
    record = json.loads(building.build(AVX2).path.with_suffix(".json").read_text())
    assert record["format_version"] == 1 and record["isa"] == "avx2"
    assert record["compiler"][-1] == "a compiler for tests 1.0"


def test_the_sources_are_part_of_the_package():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    shipped = project["tool"]["setuptools"]["package-data"]["moejax.experts.native"]
    sources = {path for path in building.SOURCES.iterdir() if path.suffix in (".cc", ".h")}
    assert sources == {path for glob in shipped for path in building.SOURCES.glob(glob)}
    assert len(sources) > 10
