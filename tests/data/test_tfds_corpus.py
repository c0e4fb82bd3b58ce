"""A prepared tensorflow-datasets dataset as corpus, without TensorFlow."""

import shutil
import sys

import numpy as np
import pytest
from data_samples import STORY, files_config, text_of

from moejax.config import ConfigError
from moejax.data import prepare
from moejax.data.corpora.tfds_dataset import quiet

TEXTS = {
    "train": [f"{i} {STORY}" * (1 + i % 4) for i in range(20)],
    "validation": [f"held out {i} {STORY}" for i in range(3)],
}


def build_dataset(folder, splits, file_format="array_record"):
    with quiet() as tfds:

        class Fables(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("1.2.0")

            def _info(self):
                features = {
                    "text": tfds.features.Text(),
                    "domain": tfds.features.ClassLabel(names=["animal", "human"]),
                    "language": tfds.features.Text(),
                    "number": tfds.features.Scalar(np.int64),
                }
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features),
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager):
                return {name: self._generate_examples(name) for name in splits}

            def _generate_examples(self, split):
                for i, text in enumerate(TEXTS[split]):
                    labels = {"domain": i % 2, "language": "en", "number": i}
                    yield i, {"text": text, **labels}

        builder = Fables(data_dir=str(folder), file_format=file_format)
        builder.download_and_prepare()
    return folder / "fables" / "1.2.0"


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return build_dataset(tmp_path_factory.mktemp("both"), ("train", "validation"))


@pytest.fixture
def fables(both, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(both, tmp_path / "fables" / "1.2.0")


def config_for(tmp_path, directory, **changes):
    return files_config(tmp_path, corpus=f"tfds:{directory}", **changes)


def test_its_own_validation_split_is_used(tmp_path, both):
    dataset = prepare(config_for(tmp_path, both))
    assert text_of(dataset.train, dataset) == TEXTS["train"]
    assert text_of(dataset.validation, dataset) == TEXTS["validation"]
    assert dataset.domains == ("animal", "human")
    assert dataset.languages == ("en",)
    assert dataset.train.doc_domain.tolist() == [i % 2 for i in range(20)]
    assert dataset.info()["corpus"] == "tfds"
    assert dataset.manifest["sources"][0]["dataset"] == "fables/1.2.0:train"
    assert "tensorflow" not in sys.modules


def test_without_one_documents_are_split(tmp_path):
    directory = build_dataset(tmp_path, ("train",))
    dataset = prepare(config_for(tmp_path, directory))
    train, validation = text_of(dataset.train, dataset), text_of(dataset.validation, dataset)
    assert len(validation) == 4
    assert sorted(train + validation) == sorted(TEXTS["train"])


def test_by_name(tmp_path, fables, monkeypatch):
    with quiet() as tfds:
        builder = tfds.builder
    monkeypatch.setattr(tfds, "builder", lambda name: builder(name, data_dir=str(tmp_path)))
    dataset = prepare(config_for(tmp_path, "fables"))
    assert text_of(dataset.validation, dataset) == TEXTS["validation"]


def test_an_unknown_name(tmp_path):
    with pytest.raises(ConfigError, match="tfds:no_such_dataset: is neither known nor prepared"):
        prepare(config_for(tmp_path, "no_such_dataset"))


def test_a_directory_without_dataset(tmp_path):
    with pytest.raises(ConfigError, match="holds no dataset;"):
        prepare(config_for(tmp_path, tmp_path))


def edit_info(directory, old, new):
    file = directory / "dataset_info.json"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_a_format_that_needs_tensorflow(tmp_path, fables):
    edit_info(fables, "array_record", "tfrecord")
    with pytest.raises(ConfigError, match=r"is stored as tfrecord, .*file_format='array_record'"):
        prepare(config_for(tmp_path, fables))


def test_a_dataset_without_train(tmp_path, fables):
    edit_info(fables, '"train"', '"practice"')
    with pytest.raises(ConfigError, match=r"no split 'train'; it has: practice, validation"):
        prepare(config_for(tmp_path, fables))


def test_records_missing_from_a_shard(tmp_path, fables):
    edit_info(fables, '"20"', '"21"')
    with pytest.raises(ConfigError, match="truncated or damaged shard: 20 of 21 records"):
        prepare(config_for(tmp_path, fables))


def test_an_unknown_text_field(tmp_path, both):
    with pytest.raises(ConfigError, match=r"no feature 'texts'; did you mean 'text'\?"):
        prepare(config_for(tmp_path, both, text_field="texts"))


def test_a_text_field_of_another_type(tmp_path, both):
    with pytest.raises(ConfigError, match=r"record 0: the text is of type int, not a string"):
        prepare(config_for(tmp_path, both, text_field="number"))


def shard(directory):
    return next(directory.glob("*-train.array_record-*"))


def damage(file, kind):
    size = file.stat().st_size
    if kind == "missing":
        file.unlink()
    elif kind == "flipped":
        with open(file, "r+b") as stream:
            stream.seek(30)
            stream.write(b"\xff" * 40)
    else:
        with open(file, "r+b") as stream:
            stream.truncate({"empty": 0, "half": size // 2, "short": size - 9}[kind])


@pytest.mark.parametrize(
    "kind, reason",
    [
        ("missing", "cannot be read (No such file or directory)"),
        ("empty", "truncated or damaged shard: 0 of 20 records can be read"),
        ("half", "truncated or damaged shard: 0 of 20 records can be read"),
        ("short", "truncated or damaged shard: 0 of 20 records can be read"),
        ("flipped", "record 0: truncated or damaged shard ("),
    ],
)
def test_a_damaged_shard_is_named(tmp_path, fables, kind, reason):
    file = shard(fables)
    damage(file, kind)
    with pytest.raises(ConfigError) as caught:
        prepare(config_for(tmp_path, fables))
    message = str(caught.value)
    assert message.startswith(f"{file}: {reason}")
    assert "\n" not in message


def test_a_shard_changed_later_is_another_corpus(tmp_path, fables):
    config = config_for(tmp_path, fables)
    first = prepare(config)
    damage(shard(fables), "half")
    with pytest.raises(ConfigError, match="truncated or damaged shard"):
        prepare(config)
    assert first.train.num_documents == 20
