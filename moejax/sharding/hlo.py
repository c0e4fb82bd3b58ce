"""Optimised HLO text as data: computations, instructions, shapes, and how often a loop runs.

Text in, plain values out; nothing is imported from XLA. What an instruction costs is in
`hlo_costs.py`, what a program costs in `hlo_totals.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable

DTYPE_BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2", "f8e4m3b11fnuz"), 1),
    **dict.fromkeys(("s16", "u16", "bf16", "f16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
    "c128": 16,
}
"""Bytes of one number; what is not listed (tokens, opaque values) has no size."""

_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_ASSIGN = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array of a type.

    Attributes:
      dtype: HLO's name.
      dims: sizes; an upper bound where a size is dynamic (`<=8`).
      space: memory space of its layout; 0 is the main memory (HBM), 1 a TPU's vector memory.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.dims)

    @property
    def num_bytes(self) -> int:
        """Bytes without the padding of tiles."""
        return self.size * DTYPE_BYTES.get(self.dtype, 0)


@functools.lru_cache(maxsize=65536)
def shapes_of(type_text: str) -> tuple[Shape, ...]:
    """The arrays of a type, those of a tuple in order."""
    found = []
    for dtype, dims, layout in _SHAPE.findall(type_text):
        space = _SPACE.search(layout)
        sizes = tuple(int(size.strip("<=")) for size in dims.split(",") if size.strip("<="))
        found.append(Shape(dtype, sizes, int(space[1]) if space else 0))
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name, opcode: as printed, without `%`.
      type: its result, a shape or a tuple of shapes, as text.
      operands: names of its operands.
      argument: the text between the parentheses (the value of a constant).
      attributes: the rest of the line.
      root: whether it is the result of its computation.
    """

    name: str
    opcode: str
    type: str
    operands: tuple[str, ...]
    argument: str
    attributes: str
    root: bool

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return shapes_of(self.type)

    def attribute(self, pattern: str) -> str:
        """The first group of a regular expression in the attributes, or an empty text."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else ""

    @property
    def op_name(self) -> str:
        """Where in the user's program it comes from."""
        return self.attribute(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named list of instructions."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {one.name: one for one in self.instructions}

    @functools.cached_property
    def root(self) -> Instruction:
        return next((one for one in self.instructions if one.root), self.instructions[-1])

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Instructions by the name of what they read."""
        found: dict[str, list[Instruction]] = {}
        for one in self.instructions:
            for operand in dict.fromkeys(one.operands):
                found.setdefault(operand, []).append(one)
        return found

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        return {int(one.argument): one for one in self.instructions if one.opcode == "parameter"}

    def operand_shapes(self, instruction: Instruction) -> list[tuple[Shape, ...]]:
        """The shapes of every operand."""
        return [self.by_name[name].shapes for name in instruction.operands if name in self.by_name]


@dataclasses.dataclass(frozen=True)
class Program:
    """A whole module; `entry` is the computation that runs."""

    computations: dict[str, Computation]
    entry: Computation


def parse(text: str) -> Program:
    """The computations of a module's text (`compiled.as_text()`).

    Raises:
      ValueError: it has no entry computation, so it is no HLO module.
    """
    computations: dict[str, Computation] = {}
    entry, name, lines = "", "", list[str]()
    for line in text.splitlines():
        head = None if name else _HEAD.match(line)
        if head:
            name, lines = head[2], []
            entry = name if head[1] else entry
        elif name and line.startswith("}") and not line.startswith("}}"):
            found = (_instruction(one) for one in lines)
            computations[name] = Computation(name, tuple(one for one in found if one))
            name = ""
        elif name and _ASSIGN.match(line):
            lines.append(line)
        elif name and lines:  # attributes of a kernel may hold line breaks
            lines[-1] += line
    if entry not in computations:
        raise ValueError("the text has no ENTRY computation: it is no HLO module")
    return Program(computations, computations[entry])


def _instruction(line: str) -> Instruction | None:
    start = _ASSIGN.match(line)
    if not start:
        return None
    rest = line[start.end() :]
    cut = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    opcode = _OPCODE.match(rest, cut)
    if cut < 1 or not opcode:
        return None
    end = _closing(rest, opcode.end() - 1)
    argument = rest[opcode.end() : end]
    return Instruction(
        name=start[2],
        opcode=opcode[1],
        type=rest[:cut],
        operands=tuple(_NAME.findall(argument)),
        argument=argument,
        attributes=rest[end + 1 :],
        root=bool(start[1]),
    )


def _closing(text: str, start: int) -> int:
    """Place of the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return len(text) - 1


def called(instruction: Instruction) -> tuple[str, ...]:
    """Computations that an instruction runs once, in order; not a loop's, a branch's or a
    reduction's."""
    if instruction.opcode not in ("fusion", "call", "call-start", "async-start", "custom-call"):
        return ()
    found = re.search(
        r"(?:calls|to_apply|called_computations)=(\{[^}]*\}|%?[\w.\-]+)", instruction.attributes
    )
    return tuple(re.findall(r"[\w.\-]+", found[1])) if found else ()


def branches(instruction: Instruction) -> tuple[str, ...]:
    """Computations of a conditional, one of which runs."""
    listed = instruction.attribute(r"branch_computations=\{([^}]*)\}")
    if listed:
        return tuple(re.findall(r"[\w.\-]+", listed))
    two = [instruction.attribute(rf"{kind}_computation=%?([\w.\-]+)") for kind in ("false", "true")]
    return tuple(name for name in two if name)


def trip_count(program: Program, owner: Computation, loop: Instruction) -> int | None:
    """How often a while loop's body runs; None where that is data.

    XLA:CPU and GPU write it down. On a TPU it is read from the condition `i < constant` and the
    constant that `i` starts from.
    """
    known = loop.attribute(r'known_trip_count":\{"n":"(\d+)"')
    if known:
        return int(known)
    condition = program.computations[loop.attribute(r"condition=%?([\w.\-]+)")]
    compare = _through_fusion(program, condition.root)
    if compare is None:
        return None
    comparison, operand_values = compare
    direction = comparison.attribute(r"direction=(\w+)")
    counter, bound = (operand_values(condition, name) for name in (0, 1))
    if direction in ("GT", "GE"):
        counter, bound, direction = bound, counter, {"GT": "LT", "GE": "LE"}[direction]
    if isinstance(counter, Instruction) and isinstance(bound, int) and direction in ("LT", "LE"):
        first = _first_value(owner, loop, counter)
        return max(0, bound - first + (direction == "LE"))
    return None


Operand = Callable[[Computation, int], "int | Instruction"]


def _through_fusion(program: Program, root: Instruction) -> tuple[Instruction, Operand] | None:
    """The comparison that ends a condition, and a function of (condition, operand's place) that
    gives a constant's value or the instruction that the operand is."""

    def resolve(condition: Computation, name: str) -> int | Instruction:
        found = condition.by_name[name]
        while found.opcode in ("copy", "bitcast", "convert") and found.operands:
            found = condition.by_name[found.operands[0]]
        if found.opcode == "constant" and re.fullmatch(r"-?\d+", found.argument):
            return int(found.argument)
        return found

    if root.opcode == "compare":
        return root, lambda condition, place: resolve(condition, root.operands[place])
    if root.opcode != "fusion":
        return None
    inner = program.computations[called(root)[0]]
    if inner.root.opcode != "compare":
        return None

    def through(condition: Computation, place: int) -> int | Instruction:
        found = resolve(inner, inner.root.operands[place])
        if isinstance(found, Instruction) and found.opcode == "parameter":
            return resolve(condition, root.operands[int(found.argument)])
        return found

    return inner.root, through


def _first_value(owner: Computation, loop: Instruction, counter: Instruction) -> int:
    """What a loop's counter starts from, 0 if the text does not say."""
    start = owner.by_name.get(loop.operands[0]) if loop.operands else None
    place = counter.attribute(r"index=(\d+)")
    if start is None or start.opcode != "tuple" or not place:
        return 0
    first = owner.by_name.get(start.operands[int(place)])
    while first is not None and first.opcode in ("copy", "bitcast") and first.operands:
        first = owner.by_name.get(first.operands[0])
    if first is not None and first.opcode == "constant" and first.argument.lstrip("-").isdigit():
        return int(first.argument)
    return 0
