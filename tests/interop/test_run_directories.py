"""An imported model is a run: opened, verified, taken out again; and the commands that do it."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from gguf_files import gguf
from parity import FIXTURES, drawn, imported
from test_gguf import TOKENIZER, TOKENS
from test_round_trip import OLMO, TopK, config_of

from moejax.config import ConfigError, build, read_json
from moejax.data import DataConfig, prepare
from moejax.interop import (
    HfDirectory,
    export,
    family_of,
    import_model,
    open_source,
    plan_export,
)
from moejax.interop.gguf_llama import tokenizer_files
from moejax.interop.importing import HEAD
from moejax.interop.rundir import open_model, write_run
from moejax.interop.verifying import verify
from moejax.models import Transformer
from moejax.train import Experiment
from moejax.train.checkpoint import Checkpoints
from moejax.train.layout import make_layout
from moejax.train.programs import make_lowerings

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DATA = {"limit_bytes": 20_000, "seq_len": 16}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny OLMoE with a vocabulary that its tokenizer fits into."""
    config = config_of(TopK(k=2, renormalise=False), attention=OLMO)
    config = dataclasses.replace(config, vocab_size=300)
    carried = tokenizer_files(TOKENIZER, Path("f.gguf"))
    root = tmp_path_factory.mktemp("hf") / "olmoe"
    plan = plan_export(config, family_of("olmoe"), dtype="bfloat16", carried=carried)
    export(root, plan, drawn(config), shard_bytes=20_000)
    return HfDirectory.open(root)


@pytest.fixture(scope="module")
def run(source, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "olmoe"
    place = tmp_path_factory.mktemp("text")
    for number in range(8):
        words = ["the", "12", "dogs", "ran,", "then", "naïvely", "they", "slept;"]
        (place / f"{number}.txt").write_text(" ".join(words[number:] + 9 * words) + "\n")
    data = DATA | {"corpus": f"files:{place}/*.txt", "cache_dir": str(place / "cache")}
    data |= {"validation_fraction": 0.2}
    experiment = write_run(root, import_model(source), source, data=data, argv=["here"])
    return root, experiment


def test_the_run_says_what_it_is_and_is_like_any_other(run, source):
    root, experiment = run
    names = {path.name for path in root.iterdir()}
    assert {"config.json", "model.json", "data.json", "env.json", "status.json",
            "checkpoints", "huggingface"} <= names  # fmt: skip
    assert build(Experiment, read_json(root / "config.json")["config"]) == experiment
    assert read_json(root / "status.json")["state"] == "imported"
    record = read_json(root / "huggingface" / "import.json")
    assert record["family"] == "olmoe" and record["dtype"] == "BF16" and record["mapped"] == 57
    dataset = prepare(experiment.data)
    assert read_json(root / "data.json")["tokenizer_hash"] == dataset.tokenizer_hash
    assert dataset.tokenizer.eos_id == 0 and dataset.vocab_size == len(TOKENS)
    ids = dataset.validation.tokens[: dataset.validation.doc_ends[0]]
    text = dataset.tokenizer.decode(ids)
    assert len(text.encode()) == dataset.validation.doc_bytes[0]


def test_what_went_in_comes_out_and_verifies(run, source, tmp_path):
    opened = open_model(run[0])
    assert opened.step == 0 and opened.family.model_type == "olmoe"
    assert verify(source, opened) == "57 of 57 tensors equal bit for bit"
    plan = plan_export(
        opened.model, opened.family, layout=opened.layout, dtypes=opened.dtypes,
        original=opened.original, carried=opened.carried,
    )  # fmt: skip
    export(tmp_path / "out", plan, opened.tree)
    again = HfDirectory.open(tmp_path / "out")
    assert again.config == source.config and again.carried() == source.carried()
    for name in source.names():
        assert again.read(name).tobytes() == source.read(name).tobytes()


@pytest.mark.parametrize("change", [{"fused": None}, {"family": 3}, {"other_dtypes": []}])
def test_a_damaged_record_of_the_import_is_one_line(run, tmp_path, change):
    shutil.copytree(run[0], tmp_path / "run")
    path = tmp_path / "run/huggingface/import.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=rf"import.json: {next(iter(change))} is .* damaged"):
        open_model(tmp_path / "run")


def test_verify_finds_one_changed_number(run, source):
    opened = open_model(run[0])
    table = np.array(opened.tree["params"]["head"]["table_VD"])
    table[7, 3] += 0.5
    opened.tree["params"]["head"]["table_VD"] = table
    with pytest.raises(
        ConfigError, match=r"1 of 57 tensors differ.*'lm_head.weight' by up to 0\.(49|5)"
    ):
        verify(source, opened)
    further = dataclasses.replace(source, files=source.files | {"odd": source.files[HEAD]})
    with pytest.raises(ConfigError, match="has 1 tensors that are not in the run, such as 'odd'"):
        verify(further, opened)
    skipped = dataclasses.replace(open_model(run[0]), skipped=frozenset({"odd"}))
    assert verify(further, skipped).endswith("bit for bit; 1 left out at the import")
    with pytest.raises(ConfigError, match="the run came from a olmoe"):
        verify(HfDirectory.open(FIXTURES / "llama"), opened)


def test_an_import_that_fails_leaves_nothing(tmp_path):
    theirs = HfDirectory.open(FIXTURES / "llama")
    with pytest.raises(ConfigError, match=r"came without a tokenizer\.json; say --tokenizer=bytes"):
        write_run(tmp_path / "run", imported("llama"), theirs, data=DATA)
    with pytest.raises(ConfigError, match="vocab_size=61: is smaller than"):
        write_run(tmp_path / "run", imported("llama"), theirs, tokenizer="bytes", data=DATA)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not empty"):
        write_run(tmp_path / "run", imported("llama"), theirs, data=DATA)


def test_a_pretrained_tokenizer_is_refused_where_it_is_not_one(tmp_path, source):
    files = source.carried()

    def opened(content=None, settings=None):
        for name, change in (("tokenizer.json", content), ("tokenizer_config.json", settings)):
            record = json.loads(files[name]) | (change or {})
            (tmp_path / name).write_text(json.dumps(record))
        return DataConfig(
            tokenizer="pretrained", tokenizer_file=str(tmp_path / "tokenizer.json")
        ).vocab_size

    assert opened() == len(TOKENS)
    for content, settings, said in (
        ({"model": {"type": "Unigram"}}, None, "only byte-level BPE is lossless"),
        ({"decoder": {"type": "Metaspace"}}, None, "only byte-level BPE is lossless"),
        ({"added_tokens": 3}, None, "what ends a document"),
        (None, {"eos_token": "</s>"}, "what ends a document"),
    ):
        with pytest.raises(ConfigError, match=said):
            opened(content, settings)
    with pytest.raises(ConfigError, match="tokenizer_file: is needed"):
        _ = DataConfig(tokenizer="pretrained").vocab_size
    with pytest.raises(ConfigError, match="no such file"):
        _ = DataConfig(tokenizer="pretrained", tokenizer_file=str(tmp_path / "x")).vocab_size


def test_text_that_spells_a_special_token_stays_text(tmp_path, source):
    for name, content in source.carried().items():
        (tmp_path / name).write_bytes(content)
    config = DataConfig(tokenizer="pretrained", tokenizer_file=str(tmp_path / "tokenizer.json"))
    tokenizer = config.recipe().train(list)
    ids = tokenizer.encode("the <|end|>")
    assert tokenizer.eos_id not in ids and tokenizer.decode(ids) == "the <|end|>"
    assert tokenizer.token_lengths()[ids].sum() == len("the <|end|>")
    again = config.recipe().load(tokenizer.state())
    np.testing.assert_array_equal(again.encode("thé 7"), tokenizer.encode("thé 7"))
    assert again.state() == tokenizer.state()


def command(*argv, fails=False):
    """Output of `tools.convert`, in a process of its own; one line on stderr if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.convert", *map(str, argv)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == (2 if fails else 0), done.stderr
    return done.stderr if fails else done.stdout


@pytest.mark.slow
def test_the_commands(source, tmp_path):
    run, out, cache = tmp_path / "run", tmp_path / "out", tmp_path / "cache"
    theirs = source.where
    said = command("import", f"--from={theirs}", f"--to={run}", f"--cache_dir={cache}",
                   "--seq_len=16")  # fmt: skip
    assert said.startswith("0 missing, 0 unexpected, 57 mapped: olmoe -> ")
    assert "57 of 57" in command("verify", f"--from={theirs}", f"--to={run}")
    assert "57 tensors of step 0 as olmoe" in command("export", f"--from={run}", f"--to={out}")
    for name in source.names():
        assert HfDirectory.open(out).read(name).tobytes() == source.read(name).tobytes()
    fused = tmp_path / "fused"
    command("export", f"--from={run}", f"--to={fused}", "--fused", "--dtype=float32")
    assert import_model(HfDirectory.open(fused)).layout.fused == {0, 1}
    for argv, said in (
        (["imports"], "imports: known: import, export, verify"),
        (["import"], "--from: is required by import"),
        (["import", f"--from={theirs}", f"--to={run}"], "is not empty"),
        (["export", f"--from={run}", "--to=x", "--dtype=int8"], "--dtype=int8: known: float32"),
        (["export", f"--from={run}", f"--to={tmp_path / 'y'}", "--family=llama"], "MoE layers"),
        (["export", f"--from={tmp_path}", "--to=x"], "is no run directory"),
    ):
        error = command(*argv, fails=True)
        assert said in error and len(error.splitlines()) == 1
    assert not (tmp_path / "y").exists()


def test_the_trainer_goes_on_from_an_imported_checkpoint(run, tmp_path):
    """The state is a whole one: parameters, fresh moments, step 0."""
    root, experiment = run
    place = tmp_path / "checkpoints"
    shutil.copytree(root / "checkpoints", place)
    abstract = make_lowerings(experiment, Transformer(experiment.model)).abstract
    checkpoints = Checkpoints(place, tmp_path / "damaged", 2, make_layout(abstract, {}, None))
    state, clock = checkpoints.restore_newest(print)
    checkpoints.close()
    assert clock.step == 0 == int(state.step)
    moments = jax.tree.leaves(state.opt_state)
    assert all(not np.asarray(leaf).any() for leaf in moments)


def test_a_damaged_gguf_is_one_line_of_the_command(tmp_path):
    (tmp_path / "f.gguf").write_bytes(gguf({}, {})[:20])
    with pytest.raises(ConfigError, match="cut short"):
        open_source(str(tmp_path / "f.gguf"))
