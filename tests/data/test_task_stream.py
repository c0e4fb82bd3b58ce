"""Windows of examples, answers alone in the loss, and rows mixed with general text."""

import numpy as np
import pytest
from data_samples import text_of
from task_samples import base_config, learned_text, rows, task_config, task_dataset

from moejax.config import ConfigError, build, config_hash, to_plain
from moejax.data import DataConfig, EvalStream, MixedStream, open_stream, prepare, task_data
from moejax.data.tasks import open_task, render
from moejax.data.tasks.packing import pack

S = 64


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(config, dataset) of 200 examples, the general text, and where all lies."""
    folder = tmp_path_factory.mktemp("task_stream")
    return *task_dataset(folder, rows(200)), folder


@pytest.fixture(scope="module")
def general(made):
    return prepare(made[0].general.text)


def mixed(made, general, seed=0, batch_size=6, **options):
    return MixedStream(made[1], general, seed=seed, batch_size=batch_size, seq_len=S, **options)


# --- packing --------------------------------------------------------------------------------------


def test_examples_are_packed_whole_from_the_start_of_one():
    ends, answers = np.array([4, 8, 12, 20]), np.array([2, 6, 11, 13])
    packing = pack(ends, answers, seq_len=8)  # windows of 9 tokens
    assert packing.first_W.tolist() == [0, 8, 12]
    assert packing.stop_W.tolist() == [8, 12, 20]
    assert packing.learned_W.tolist() == [4, 1, 7]
    assert (packing.cut, packing.left_out) == (0, 0)


def test_a_long_answer_loses_its_end_and_a_long_prompt_its_example():
    # Lengths 20 (prompt 4), 20 (prompt 9: no room for an answer), 3, 3.
    ends, answers = np.array([20, 40, 43, 46]), np.array([4, 29, 42, 45])
    packing = pack(ends, answers, seq_len=8)
    assert packing.first_W.tolist() == [0, 40]
    assert packing.stop_W.tolist() == [9, 46]
    assert packing.learned_W.tolist() == [5, 2]
    assert (packing.cut, packing.left_out) == (1, 1)


@pytest.mark.parametrize("seed", range(4))
def test_every_window_is_whole_examples_or_the_beginning_of_one(seed):
    rng = np.random.default_rng(seed)
    size = rng.integers(2, 14, 200)
    ends = size.cumsum()
    begins = ends - size
    answers = begins + 1 + rng.integers(0, size - 1)
    packing = pack(ends, answers, seq_len=9)
    taken = np.zeros(len(ends), int)
    for first, stop, learned in zip(
        packing.first_W, packing.stop_W, packing.learned_W, strict=True
    ):
        assert first in begins and 0 < stop - first <= 10
        inside = np.flatnonzero((begins >= first) & (begins < stop))
        taken[inside] += 1
        if stop not in ends:
            assert len(inside) == 1 and stop - first == 10
        assert learned == sum(min(ends[i], stop) - answers[i] for i in inside) > 0
    assert packing.left_out == (taken == 0).sum() and taken.max() == 1
    assert packing.cut == sum(stop not in ends for stop in packing.stop_W)


# --- the prepared dataset -------------------------------------------------------------------------


def test_only_answers_are_learned_and_each_once_an_epoch(made):
    config, dataset, _ = made
    task = open_task(config.corpus)
    stream = open_stream(dataset, task_alone(config), seed=0, batch_size=1)
    seen = []
    for step in range(stream.windows_per_epoch):
        batch = stream.batch(step)
        text = dataset.tokenizer.decode(batch["tokens"][0])
        assert text.startswith("User: question")
        ends = (batch["targets"][0] == dataset.tokenizer.eos_id) & (batch["loss_mask"][0] > 0)
        pieces = np.split(np.arange(S), np.flatnonzero(ends) + 1)
        for piece in pieces[:-1]:
            counted = piece[batch["loss_mask"][0][piece] > 0]
            seen.append(dataset.tokenizer.decode(batch["targets"][0][counted]))
            assert (np.diff(counted) == 1).all()  # one run: no tail of another answer
        assert not batch["loss_mask"][0][pieces[-1]].any()
    assert sorted(seen) == sorted(render(e)[1] for e in task.examples("train"))
    assert stream.dataset.train.packing(S).cut == 0


def task_alone(config):
    return DataConfig(**{**vars(config), "general": None, "corpus": "embedded"})


def test_examples_do_not_see_one_another(made):
    dataset = made[1]
    for batch in EvalStream(dataset, batch_size=4, seq_len=S).batches():
        start = np.diff(batch["segment_ids"], axis=1) > 0
        assert (batch["positions"][:, 1:][start] == 0).all()
        assert batch["loss_mask"].max() == 1.0
        begins = batch["tokens"][:, 1:][start]
        assert {dataset.tokenizer.decode([i]) for i in begins} <= {"U"}


def test_the_dataset_has_the_base_s_tokenizer_and_the_task_s_text(made, general):
    config, dataset, _ = made
    assert dataset.tokenizer_hash == general.tokenizer_hash
    assert dataset.manifest_hash != general.manifest_hash
    task = open_task(config.corpus)
    for split in (dataset.train, dataset.validation):
        wanted = ["".join(render(e)) for e in task.examples(split.name)]
        assert text_of(split, dataset) == wanted
        answers = sum(len(render(e)[1].encode()) for e in task.examples(split.name))
        count = len(wanted)
        assert split.bytes_per_token == answers / (answers + count)  # bytes, and an EOS each
    assert not {e.prompt for e in task.examples("test")} & {
        text.split("\n")[0].removeprefix("User: ") for text in text_of(dataset.train, dataset)
    }
    info = dataset.info()
    assert info["corpus"] == "task" and set(info["domains"]) == {"even", "odd"}
    assert dataset.manifest["splits"]["train"]["examples"] == len(task.examples("train"))
    dataset.verify()
    assert prepare(config).directory == dataset.directory


def test_baselines_are_of_the_positions_that_count(made):
    stream = EvalStream(made[1], batch_size=4, seq_len=S)
    counted = sum(int((b["loss_mask"] > 0).sum()) for b in stream.batches())
    assert stream.baselines()["positions"] == counted


def test_another_template_is_another_dataset(made):
    _, dataset, folder = made
    config = task_config(folder, rows(200), template="Q: {prompt}\nA: {answer}")
    other = prepare(config)
    assert other.directory != dataset.directory
    assert text_of(other.train, other)[0].startswith("Q: question")
    assert open_stream(other, config, seed=0, batch_size=2).dataset is other


def test_windows_too_short_for_any_prompt_are_refused(made):
    config = made[0]
    short = DataConfig(**{**vars(config), "seq_len": 8})
    with pytest.raises(ConfigError, match="no prompt of the train split fits a window"):
        prepare(short)


# --- mixing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.5, 0.25, 1 / 3, 0.9])
def test_rows_are_mixed_evenly_and_each_part_in_its_own_order(made, general, share):
    stream = mixed(made, general, seed=3, share=share)
    alone = [stream._streams[0], stream._streams[1]]
    number = [0, 0]
    flags = []
    for step in range(8):
        batch, chosen = stream.batch(step), stream.general_rows(step)
        flags += chosen.tolist()
        for row, part in enumerate(chosen.astype(int)):
            want = alone[part]
            single, at = divmod(number[part], want.batch_size)
            whole = want.batch(single)
            for key in ("tokens", "targets", "segment_ids", "positions"):
                np.testing.assert_array_equal(batch[key][row], whole[key][at], err_msg=key)
            np.testing.assert_allclose(
                batch["loss_mask"][row], whole["loss_mask"][at] * stream.weights[part], rtol=1e-6
            )
            number[part] += 1
    total = np.cumsum(flags)
    np.testing.assert_array_less(np.abs(total - share * np.arange(1, len(flags) + 1)), 1.0)


def test_batches_depend_on_seed_and_step_alone(made, general):
    one, two = mixed(made, general, seed=5), mixed(made, general, seed=5)
    for step in (9, 0, 10**7, 3):
        a, b = one.batch(step), two.batch(step)
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)
    other = mixed(made, general, seed=6).batch(0)
    assert (other["tokens"] != one.batch(0)["tokens"]).any()


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_a_mixed_batch(made, general, count):
    stream = mixed(made, general)
    for step in (0, 1, 12345):
        whole = stream.batch(step)
        parts = [stream.batch(step, rows) for rows in np.arange(6).reshape(count, -1)]
        for key in whole:
            np.testing.assert_array_equal(np.concatenate([p[key] for p in parts]), whole[key])


def test_iterating_a_mixed_stream_is_seeking(made, general):
    stream = mixed(made, general)
    iterator = stream.iterate(start_step=41)
    for expected in range(41, 50):
        step, batch = next(iterator)
        assert step == expected
        np.testing.assert_array_equal(batch["tokens"], stream.batch(step)["tokens"])
    iterator.close()


def test_parts_have_their_shares_of_the_loss(made, general):
    for share in (0.5, 0.25):
        stream = mixed(made, general, batch_size=8, share=share)
        weight = np.zeros(2)
        for step in range(60):
            batch, chosen = stream.batch(step), stream.general_rows(step)
            weight += [batch["loss_mask"][chosen == part].sum() for part in (0, 1)]
        assert weight[1] / weight.sum() == pytest.approx(share, abs=0.05)
        assert max(stream.weights) == 1.0 > min(stream.weights) > 0
    plain = mixed(made, general, weigh="tokens")
    assert plain.weights == (1.0, 1.0)
    assert set(np.unique(plain.batch(0)["loss_mask"])) <= {0.0, 1.0}


def test_the_stream_of_a_config(made):
    config, dataset, folder = made
    stream = open_stream(dataset, config, seed=1, batch_size=4)
    assert isinstance(stream, MixedStream) and stream.share == 0.5
    assert stream.general.directory == prepare(config.general.text).directory
    alone = task_config(folder, rows(200), share=0.0)
    stream = open_stream(dataset, alone, seed=1, batch_size=4)
    assert not isinstance(stream, MixedStream)
    batch = stream.batch(0)
    assert learned_text(batch, 0, dataset.tokenizer).startswith(" the answer is")


def test_bad_mixtures(made, general):
    with pytest.raises(ConfigError, match=r"share=1\.0: must be above 0 and below 1"):
        mixed(made, general, share=1.0)
    with pytest.raises(ConfigError, match="step=-1"):
        mixed(made, general).batch(-1)
    with pytest.raises(ConfigError, match="batch_size=0"):
        mixed(made, general, batch_size=0)


def test_a_task_of_another_tokenizer_is_not_mixed(made, tmp_path):
    other = prepare(base_config(tmp_path, tokenizer="bpe", bpe_vocab_size=280))
    with pytest.raises(ConfigError, match="its tokenizer is not that of"):
        mixed(made, other)


# --- the config -----------------------------------------------------------------------------------


def test_configs_without_a_task_are_as_they_were():
    plain = to_plain(DataConfig())
    assert "general" not in plain
    assert build(DataConfig, plain) == DataConfig()


def test_a_config_with_a_task_survives_json(made):
    config = made[0]
    assert build(DataConfig, to_plain(config)) == config
    assert config_hash(to_plain(config)) != config_hash(to_plain(config.general.text))


def test_a_task_tuned_again_goes_on_with_the_first_base_s_text(made):
    config = made[0]
    again = task_data(config, "law", share=0.25)
    assert again.general.text == config.general.text
    assert (again.corpus, again.general.share) == ("task:law", 0.25)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"general": None}, "a task needs the text and tokenizer of a base model in"),
        ({"corpus": "embedded"}, r"general: only goes with a task; .*instead of 'embedded'"),
        ({"tokenizer": "bpe"}, "tokenizer='bpe': the tokenizer is the base's; .* 'bytes'"),
        ({"corpus": "tasks:law"}, "unknown corpus; did you mean 'task'"),
    ],
)
def test_bad_data_configs(made, changes, message):
    values = to_plain(made[0]) | changes
    with pytest.raises(ConfigError, match=message):
        build(DataConfig, {k: v for k, v in values.items() if v is not None})


def test_a_task_is_no_general_text_and_a_template_has_places(made):
    plain = to_plain(made[0])
    nested = {**plain, "general": {**plain["general"], "text": plain}}
    with pytest.raises(ConfigError, match=r"general\.text: is a task"):
        build(DataConfig, nested)
    wrong = {**plain, "general": {**plain["general"], "template": "{prompt}"}}
    with pytest.raises(ConfigError, match=r"needs \{prompt\} once and \{answer\} once"):
        build(DataConfig, wrong)
