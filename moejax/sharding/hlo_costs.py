"""What one HLO instruction costs: FLOPs of a product, bytes of a collective, bytes of memory."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np

from moejax.sharding.hlo import Computation, Instruction, Program, Shape, called

COLLECTIVES = (
    "ragged-all-to-all",
    "all-to-all",
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "collective-permute",
    "collective-broadcast",
)
FREE = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all")
) | {"while", "conditional", "call", "call-start", "async-start", "async-update", "send", "recv"}
FREE |= {"partition-id", "replica-id", "opt-barrier", "add-dependency", "domain"}
"""Opcodes that move no bytes of their own."""


def product_flops(owner: Computation, one: Instruction) -> float:
    """FLOPs of a `dot` or `convolution`, two per multiply-add; 0 for other instructions.

    TPUs run every dot as a convolution, batched ones as a dilated window: only the places of a
    window that meet a number count, as in XLA's own analysis.
    """
    if one.opcode not in ("dot", "convolution"):
        return 0.0
    lhs, rhs = (owner.by_name[name].shapes[0] for name in one.operands[:2])
    out = one.shapes[0]
    if one.opcode == "dot":
        contracted = one.attribute(r"lhs_contracting_dims=\{([\d,]*)\}")
        return 2.0 * out.size * math.prod(lhs.dims[int(d)] for d in contracted.split(",") if d)
    return _convolution_flops(one, lhs, rhs, out)


def _convolution_flops(one: Instruction, lhs: Shape, rhs: Shape, out: Shape) -> float:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    if labels is None:
        return 0.0
    in_labels, kernel_labels, out_labels = labels[1], labels[2], labels[3]
    window = one.attribute(r"window=\{([^}]*)\}")
    taps = 1.0
    for place in sorted(label for label in in_labels if label.isdigit()):
        index = int(place)
        taps *= _valid_taps(
            lhs.dims[in_labels.index(place)],
            rhs.dims[kernel_labels.index(place)],
            out.dims[out_labels.index(place)],
            stride=_window(window, "stride", index, 1),
            low=_window(window, "pad", index, 0),
            dilate_lhs=_window(window, "lhs_dilate", index, 1),
            dilate_rhs=_window(window, "rhs_dilate", index, 1),
        )
    batch = out.dims[out_labels.index("b")]
    features_in = rhs.dims[kernel_labels.index("i")]
    features_out = out.dims[out_labels.index("f")]
    groups = int(one.attribute(r"batch_group_count=(\d+)") or 1)
    return 2.0 * batch * features_in * features_out * taps / groups


def _window(window: str, key: str, index: int, default: int) -> int:
    found = re.search(rf"\b{key}=(\S+)", window)
    if not found:
        return default
    values = found[1].split("x")
    return int(values[index].split("_")[0]) if index < len(values) else default


def _valid_taps(
    size: int, kernel: int, out: int, *, stride: int, low: int, dilate_lhs: int, dilate_rhs: int
) -> int:
    """Pairs of an output and a kernel place that meet a number, not padding or a hole."""
    out_place, kernel_place = np.arange(out)[:, None], np.arange(kernel)[None, :]
    place = out_place * stride - low + kernel_place * dilate_rhs
    inside = (place >= 0) & (place < (size - 1) * dilate_lhs + 1) & (place % dilate_lhs == 0)
    return int(inside.sum())


def collective_kind(one: Instruction) -> str:
    """The kind of a collective that starts here, or an empty text."""
    base = one.opcode.removesuffix("-start")
    return base if base in COLLECTIVES else ""


def slow_transfer(one: Instruction) -> str:
    """The kind of a collective between TPU slices that starts here, or an empty text. Every slice
    runs a program of its own, and hosts reduce and exchange what chips send to them."""
    kind = one.attribute(r'_xla_megascale_transfer_type="(\w+)"').lower().replace("_", "-")
    return kind if one.opcode == "send" and kind in COLLECTIVES else ""


def result_bytes(owner: Computation, one: Instruction) -> int:
    """Bytes of a collective's result on one device; an asynchronous one's operands are left out
    of the tuple that its start gives."""
    arrays = [shape for shape in one.shapes if shape.dims or len(one.shapes) == 1]
    total = sum(shape.num_bytes for shape in arrays)
    if one.opcode.endswith("-start") and one.opcode != "all-reduce-start" and len(arrays) > 1:
        given = owner.operand_shapes(one)
        total -= sum(shape.num_bytes for shapes in given for shape in shapes)
    return total


def first_group(one: Instruction, num_devices: int) -> tuple[int, ...]:
    """Devices (places in the mesh's order) of the first group of a collective.

    Text knows three spellings: `{{0,1},{2,3}}`, `[2,2]<=[2,2]T(1,0)` and
    `mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}`. A collective without groups is one of all
    devices; a permute's is its first pair.
    """
    attributes = one.attributes
    pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes)
    if pairs:
        return int(pairs[1]), int(pairs[2])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if listed:
        return tuple(int(device) for device in listed[1].split(",") if device)
    iota = re.search(rf"replica_groups=\[(\d+),(\d+)\]<={_IOTA}", attributes)
    if iota:
        devices = _devices(iota[3], iota[4])
        return tuple(int(device) for device in devices.reshape(int(iota[1]), int(iota[2]))[0])
    mesh = re.search(
        rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_IOTA}\))?[^{{]*\{{([^}}]*)\}}",
        attributes,
    )
    if mesh:
        axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        over = re.findall(r"'([^']+)'", mesh[4])
        order = _devices(mesh[2] or str(math.prod(axes.values())), mesh[3])
        index = tuple(slice(None) if name in over else 0 for name in axes)
        devices = np.atleast_1d(order.reshape(list(axes.values()))[index])
        return tuple(int(device) for device in devices.reshape(-1))
    return tuple(range(num_devices))


_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"


def _devices(sizes: str, transposed: str | None) -> np.ndarray:
    """`[2,4]T(1,0)`: the numbers from 0 in that shape, transposed."""
    shape = [int(size) for size in sizes.split(",")]
    devices = np.arange(math.prod(shape)).reshape(shape)
    return (
        devices.transpose([int(axis) for axis in transposed.split(",")]) if transposed else devices
    )


def kernel_flops(one: Instruction) -> float | None:
    """FLOPs that a kernel (a custom call with a cost estimate) says it needs; None if it is silent
    or says 0."""
    stated = one.attribute(r'"flops":"?(\d+)')
    return float(stated) if stated and int(stated) > 0 else None


def hbm_bytes(program: Program, owner: Computation, one: Instruction) -> int:
    """Bytes that an instruction reads from and writes to the main memory.

    A slice of an operand counts as the slice, an update in place as the update; what lies in a
    TPU's vector memory costs nothing.
    """
    if one.opcode in FREE or one.opcode.endswith("-done"):
        return 0
    if one.opcode == "custom-call" and "tpu_custom_call" not in one.attributes:
        return 0
    if one.opcode in ("copy-start", "slice-start"):
        source = owner.operand_shapes(one)
        target = one.shapes[0]
        ends = (target.space == 0) + bool(source and source[0] and source[0][0].space == 0)
        return target.num_bytes * ends
    if one.opcode == "fusion":
        return _fusion_bytes(program.computations[called(one)[0]], owner, one)
    if one.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * _main(one.shapes)
    if one.opcode in ("dynamic-update-slice", "scatter"):
        return 2 * _main(owner.by_name[one.operands[-1 if one.opcode == "scatter" else 1]].shapes)
    return _main(one.shapes) + sum(_main(shapes) for shapes in owner.operand_shapes(one))


def _main(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.num_bytes for shape in shapes if shape.space == 0)


def _fusion_bytes(inner: Computation, owner: Computation, one: Instruction) -> int:
    total = 0
    for place, name in enumerate(one.operands):
        shapes = owner.by_name[name].shapes if name in owner.by_name else ()
        parameter = inner.parameters.get(place)
        users = inner.users.get(parameter.name, []) if parameter else []
        full = _main(shapes)
        if users and full and all(_reads_part(user, parameter) for user in users):
            full = min(full, sum(_part(inner, user) for user in users))
        total += full
    results = [inner.root]
    if inner.root.opcode == "tuple":
        results = [inner.by_name[name] for name in inner.root.operands]
    for result, shape in itertools.zip_longest(results, one.shapes):
        if shape is None or shape.space:
            continue
        updated = result is not None and result.opcode == "dynamic-update-slice"
        total += _part(inner, result) if updated and result else shape.num_bytes
    return total


def _reads_part(user: Instruction, parameter: Instruction | None) -> bool:
    first = parameter is not None and bool(user.operands) and user.operands[0] == parameter.name
    return first and user.opcode in ("dynamic-slice", "slice", "gather", "dynamic-update-slice")


def _part(inner: Computation, user: Instruction) -> int:
    """Bytes of the slice that is read, or of the update that is written."""
    if user.opcode == "dynamic-update-slice":
        return sum(shape.num_bytes for shape in inner.by_name[user.operands[1]].shapes)
    return sum(shape.num_bytes for shape in user.shapes)
