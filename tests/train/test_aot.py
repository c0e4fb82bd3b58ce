"""The report of a step compiled for a machine that is not here, made of CPU devices."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from configs import lm
from configs.pods import PODS
from moejax.config import ConfigError, build
from moejax.finetune.methods import ESFT
from moejax.sharding import MeshConfig, make_mesh
from moejax.sharding.hlo_totals import Kernel, Route, Totals
from moejax.sharding.topology import CHIPS, Topology, parse_topology
from moejax.train import Experiment, aot
from moejax.train.aot_model import (
    balanced_fraction,
    roofline,
    route_seconds,
    row_budget,
    step_flops,
)
from moejax.train.aot_print import pod_table
from moejax.train.aot_report import Compiled, compiled_flops, make_report
from moejax.train.aot_search import estimate, memory_bytes, search, traffic
from moejax.train.tuning import FineTune

TOPOLOGY = parse_topology("v5e:2x4")


def experiment(argument="size=nano,moe=top_k,quick", mesh=None, **changes):
    config = lm.get_config(argument)
    config.update_from_flattened_dict({key.replace("__", "."): v for key, v in changes.items()})
    one = build(Experiment, config)
    return one if mesh is None else dataclasses.replace(one, mesh=MeshConfig(**mesh))


@pytest.fixture
def cpu_pod(monkeypatch, tmp_path, devices):
    """Eight CPU devices under the name of a pod, and an empty cache."""
    monkeypatch.setattr(aot, "check_compiler", lambda topology: None)
    monkeypatch.setattr(aot, "devices_of", lambda topology: devices)
    monkeypatch.setenv("MOEJAX_CACHE", str(tmp_path))


def test_a_report_of_the_real_step_and_the_second_from_the_cache(cpu_pod, monkeypatch):
    # `loop`: products of known shapes; `tiles` has loops whose length is data.
    one = experiment(mesh={"fsdp": 8}, model__moe__backend="loop", model__remat="full")
    report = aot.fit_report(one, TOPOLOGY)
    assert report["fits"] and not report["cached"] and report["chips"] == 8
    assert report["flops"]["ratio"] == pytest.approx(1, abs=0.1)
    state = report["state_bytes"]
    assert state["optimizer"] == pytest.approx(2 * state["parameters"], rel=1e-3)
    assert report["memory"]["argument"] >= state["parameters"] + state["optimizer"]
    assert any(row["kind"] == "all-gather" and row["runs"] > 1 for row in report["collectives"])
    assert 0 < report["roofline"]["mfu_serial"] <= report["roofline"]["mfu"] <= 1
    assert len(report["problems"]) == 1 and "[S, S]" in report["problems"][0]

    def never(*_):
        raise AssertionError("compiled again")

    monkeypatch.setattr(aot, "_compile", never)
    again = aot.fit_report(one, TOPOLOGY)
    assert again == report | {"cached": True}
    json.dumps(again, allow_nan=False)
    for other in (dataclasses.replace(one, seed=1), experiment(mesh={"fsdp": 8})):
        with pytest.raises(AssertionError, match="compiled again"):
            aot.fit_report(other, TOPOLOGY)


def test_large_parameters_that_every_chip_holds_whole_are_named(devices):
    mesh = make_mesh(MeshConfig(fsdp=8), devices)

    def leaf(rows, *axes):
        spec = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct((rows, 1024), jnp.float32, sharding=spec)

    params = {
        "split_VD": leaf(2**16, None, "fsdp"),
        "whole_RH": leaf(2**16),
        "small_D": leaf(8),
    }
    assert aot.whole_parameters(params) == ("whole_RH (0.25 GiB)",)


def test_a_cache_that_cannot_be_read_is_made_again(tmp_path):
    file = tmp_path / "report.json"
    assert aot.read_cache(file) is None
    for text in ("{", "[]", '{"format_version": -1}'):
        file.write_text(text)
        assert aot.read_cache(file) is None


def test_a_source_or_flag_that_changes_is_another_report(monkeypatch):
    one = experiment()
    key = aot.request_key(one, TOPOLOGY, False)
    assert key == aot.request_key(one, TOPOLOGY, False)
    assert key != aot.request_key(one, TOPOLOGY, True)
    assert key != aot.request_key(one, parse_topology("v5e:4x4"), False)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_x=1")
    assert key != aot.request_key(one, TOPOLOGY, False)


@pytest.mark.parametrize(
    "mesh, message",
    [
        ({"fsdp": 4}, "--mesh: uses 4 of the 8 chips of v5e:2x4; nearest valid value fsdp=-1"),
        ({"expert": 3}, "--mesh: .* does not divide 8 devices; nearest valid value expert=2"),
        ({"fsdp": 16}, "--mesh: .* needs 16 devices but there are 8; nearest valid value fsdp=8"),
    ],
)
def test_a_mesh_that_does_not_fit_is_told_before_anything_is_compiled(
    cpu_pod, monkeypatch, mesh, message
):
    monkeypatch.setattr(aot, "_compile", None)
    with pytest.raises(ConfigError, match=message):
        aot.fit_report(experiment(mesh=mesh), TOPOLOGY, path="--mesh")


def test_data_spans_the_slices():
    two = parse_topology("v5e:2x2", slices=2)
    with pytest.raises(ConfigError, match=r"--mesh\.data=1: 2 slices .*nearest valid value data=2"):
        aot.check_mesh(MeshConfig(), two, "--mesh")
    aot.check_mesh(MeshConfig(data=2), two, "--mesh")


def test_a_batch_that_does_not_divide_is_told_too(cpu_pod, monkeypatch):
    monkeypatch.setattr(aot, "_compile", None)
    one = experiment(mesh={"fsdp": 8}, train__batch_size=12)
    with pytest.raises(ConfigError, match="nearest valid value 16"):
        aot.fit_report(one, TOPOLOGY)


@pytest.mark.parametrize(
    "text, sizes",
    [
        ("data=2,fsdp=4", (2, 4, 1, 1)),
        ("expert=8", (1, -1, 8, 1)),
        ("fsdp=1, tensor=-1", (1, 1, 1, -1)),
        ("data=-1", (-1, 1, 1, 1)),
    ],
)
def test_a_mesh_as_text(text, sizes):
    assert aot.parse_mesh(text).sizes == sizes


@pytest.mark.parametrize("text", ["fsdpp=2", "fsdp", "fsdp=x", "data=-1,fsdp=-1", "fsdp=0"])
def test_a_mesh_that_is_none_is_one_line(text):
    with pytest.raises(ConfigError, match=r"--mesh.*nearest valid value"):
        aot.parse_mesh(text)


@pytest.mark.parametrize(
    "message, needed, available",
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (79.93G) exceeds available HBM (15.75G).",
            79.93,
            15.75,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 18.30G of 15.48G hbm. Exceeded hbm capacity by 2.82G.\nmore",
            18.30,
            15.48,
        ),
        ("RESOURCE_EXHAUSTED: something else", 0, 0),
    ],
)
def test_reasons_of_the_compiler(message, needed, available):
    reason, used, limit = aot.parse_out_of_memory(message)
    assert "\n" not in reason
    assert (used / 2**30, limit / 2**30) == pytest.approx((needed, available))


def test_a_program_that_does_not_fit_is_a_report():
    compiled = Compiled("", {"lower": 1.0, "compile": 2.0}, {}, "Ran out", 2**34, 2**33)
    state = {"parameters": 1, "optimizer": 2, "other": 0}
    mesh = {"data": 1, "fsdp": 8, "expert": 1, "tensor": 1}
    report = make_report(experiment(), TOPOLOGY, mesh, compiled, state, True)
    assert not report["fits"] and report["problems"] == ["Ran out"]
    assert report["hbm"]["used"] == 2**34 and report["roofline"] is None
    assert "does not fit" in pod_table([report])


def test_products_that_are_computed_densely_are_a_problem():
    least = Totals(product_flops=8 * step_flops(experiment()).total)
    memory = dict.fromkeys(("argument", "output", "alias", "temp", "peak"), 1024)
    compiled = Compiled("", {"lower": 1.0, "compile": 2.0}, memory, least=least, most=least)
    mesh = {"data": 1, "fsdp": 8, "expert": 1, "tensor": 1}
    report = make_report(experiment(), TOPOLOGY, mesh, compiled, {}, False)
    assert report["problems"] == [problem for problem in report["problems"] if "64.00 x" in problem]
    assert report["problems"] and report["fits"]


def test_a_fine_tuning_computes_fewer_gradients_and_holds_less_state(cpu_pod):
    # Layers that are not scanned, and experts one by one: gradients that nobody uses fall away.
    whole = experiment(mesh={"fsdp": 8}, model__moe__backend="loop", model__scan=False)
    tuned = dataclasses.replace(
        whole, finetune=FineTune(base_hash="of a base", method=ESFT({"0": (1, 2)}))
    )
    all_of_it, part = (aot.fit_report(one, TOPOLOGY) for one in (whole, tuned))
    assert part["flops"]["ratio"] < 0.9 < all_of_it["flops"]["ratio"], "lower than is tolerated"
    assert part["state_bytes"]["optimizer"] < 0.2 * all_of_it["state_bytes"]["optimizer"]
    assert not any("analytic" in problem for problem in part["problems"])
    assert any(note.startswith("a fine-tuning") for note in part["notes"])
    assert not any(note.startswith("a fine-tuning") for note in all_of_it["notes"])


def test_kernels_count_the_rows_that_balanced_routing_fills():
    rows = row_budget(experiment(), {"data": 1, "fsdp": 2, "expert": 2, "tensor": 1})
    # 8 sequences of 32 tokens over 4 shards, 2 experts each, gathered from 2 devices.
    assert (rows.tokens, rows.balanced, rows.exchanged, rows.buffer) == (64, 128, 128, 256)
    shapes = ((256, 16), (256, 32), (4, 16, 32))
    stated = 2.0 * 256 * 16 * 32
    assert balanced_fraction(shapes, stated, rows.balanced) == 0.5
    least = Totals(
        product_flops=1.0,
        kernels={Kernel("gmm", shapes, stated): 3, Kernel("splash_fwd", shapes, None): 1},
    )
    flops = compiled_flops(least, 5.0, rows)
    assert flops["kernels_balanced"] == 1.5 * stated and flops["kernels_assumed"] == 5.0
    assert flops["total"] == 1 + 1.5 * stated + 5


def test_recomputation_is_in_executed_flops_and_not_in_model_flops():
    plain, full = (step_flops(experiment(model__remat=remat)) for remat in ("none", "full"))
    assert plain.model == full.model < plain.total < full.total
    assert full.executed["attention"] == pytest.approx(plain.executed["attention"] * 4 / 3)
    assert full.executed["experts"] == plain.executed["experts"]


def test_a_roofline_by_hand():
    topology, chip = Topology("v5p", (4, 4, 4), 2), CHIPS["v5p"]
    line = roofline(
        topology,
        chip.peak,
        2 * chip.hbm_bandwidth,
        {
            Route("all-gather", 4, False): (1, 4 * chip.axis_bandwidth),
            Route("all-reduce", 2, True): (1, 3 * chip.dcn),
        },
    )
    assert (line.compute, line.hbm, line.ici, line.dcn) == pytest.approx((1, 2, 3, 3))
    assert line.overlapped == pytest.approx(3) and line.serial == pytest.approx(2 + 3 + 3)


def test_an_all_to_all_takes_longer_on_a_longer_ring_and_all_dimensions_beyond_one():
    topology = parse_topology("v5p:8x8x8")
    seconds = {
        n: route_seconds(topology, Route("all-to-all", n, False), 1e9)[0] for n in (4, 8, 512)
    }
    assert seconds[8] == pytest.approx(2 * seconds[4]) == pytest.approx(seconds[512])


def test_the_search_ranks_what_fits_by_time():
    one = experiment("size=base,moe=top_k", model__compute_dtype="bfloat16")
    found = search(one, parse_topology("v5e:4x4"))
    assert len(found) > 20
    fitting = [candidate for candidate in found if candidate.fits]
    assert found[: len(fitting)] == fitting
    times = [candidate.step_seconds for candidate in fitting]
    assert times == sorted(times) and 0 < fitting[0].mfu < 1
    for candidate in found:
        own = candidate.apply(one)
        assert own.train.batch_size == one.train.batch_size
        assert own.mesh.resolve(16).sizes == own.mesh.sizes


def test_rematerialisation_and_micro_batches_trade_memory_for_time():
    one = experiment("size=base,moe=top_k")
    topology, mesh = parse_topology("v5e:4x4"), MeshConfig(1, 8, 2)
    none, dots, full = (estimate(one, topology, mesh, r, 1) for r in ("none", "dots", "full"))
    assert none.bytes > dots.bytes > full.bytes
    assert none.time.compute < full.time.compute
    small = estimate(one, topology, mesh, "none", 8)
    assert small.bytes < none.bytes and small.time.ici > none.time.ici


def test_more_shards_hold_less_state_and_slices_talk_over_the_slow_network():
    one = experiment("size=base,moe=top_k")
    few, many = (
        memory_bytes(dataclasses.replace(one, mesh=MeshConfig(1, fsdp)))["state"]
        for fsdp in (4, 16)
    )
    assert few == 4 * many
    topology = parse_topology("v5p:2x2x1", slices=2)
    routes = traffic(dataclasses.replace(one, mesh=MeshConfig(2, 4)), topology)
    assert {route.kind for route in routes if route.slow} == {"all-reduce"}


def test_a_machine_that_nothing_divides_is_one_line():
    with pytest.raises(ConfigError, match="--search: no mesh of 256 devices"):
        search(experiment(), parse_topology("v5e:16x16"))


@pytest.mark.parametrize("pod", PODS, ids=lambda pod: f"{pod.config}-{pod.topology}")
def test_every_row_of_the_table_of_pods_divides(pod):
    topology = parse_topology(pod.topology, pod.slices)
    config = lm.get_config(pod.config)
    config.update_from_flattened_dict(pod.set)
    one = build(Experiment, config)
    mesh = aot.parse_mesh(pod.mesh).resolve(topology.num_chips)
    assert mesh.data % pod.slices == 0
    micro = one.train.batch_size // one.train.accumulate
    assert micro % (mesh.data * mesh.fsdp * mesh.expert) == 0
    assert one.model.d_model % (mesh.fsdp * mesh.expert) == 0
