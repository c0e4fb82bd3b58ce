"""Low-rank updates of frozen matrices: LoRA (Hu et al. 2021, 2106.09685) and MultiLoRA (Wang et al.
2023, 2311.11501; methods.md G).

    W = W0 + (alpha / r) sum_m diag(s_m) B_m A_m,    A_m [r, in], B_m [out, r], s_m [out]

LoRA is one module without s, B starts at zero; in MultiLoRA s starts at zero, A and B do not. The
matrix of an expert lies along its hidden units, whatever its width: so does the factor on that
side, `[N, U, M, r]`, and the other one, `[E, M, r, D]`, is the expert's own or one for the layer
(E = 1).
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from moejax.experts.exchange.placement import Placement
from moejax.finetune.leaves import Ints, Leaf, Tree, filled, flat, nested

Factors = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Shape:
    """What all updates of a method have in common.

    Attributes:
      rank: `r` of each module.
      modules: `M`, updates that add up.
      alpha: the update is scaled by `alpha / rank`.
      scaled: whether modules have an `s` (MultiLoRA).
    """

    rank: int
    modules: int = 1
    alpha: float = 16.0
    scaled: bool = False


class Update(Protocol):
    """The update of one stacked array."""

    def init(self, key: jax.Array, shape: Shape) -> Factors:
        """`in_...`, `out_...` and, where modules are scaled, `scale_...`; layers come first."""

    def delta(self, factors: Factors, shape: Shape) -> jax.Array:
        """What is added to the array; of its shape, in the dtype of the factors."""


@dataclasses.dataclass(frozen=True)
class Plain:
    """A matrix per layer, `[L, in..., out...]` or `[L, out..., in...]`.

    Attributes:
      letters: axis letters of the array: `DHd`.
      into: which of them the input lies along: `(0,)`.
      sizes: of the array, without layers.
      num_layers: `L`.
      dtype: of the factors.
    """

    letters: str
    into: tuple[int, ...]
    sizes: tuple[int, ...]
    num_layers: int
    dtype: np.dtype[Any]

    @property
    def out(self) -> tuple[int, ...]:
        """Which axes the output lies along."""
        return tuple(axis for axis in range(len(self.letters)) if axis not in self.into)

    def init(self, key: jax.Array, shape: Shape) -> Factors:
        in_bound, out_bound = first_bounds(math.prod(self.sizes[axis] for axis in self.into), shape)
        in_key, out_key = jax.random.split(key)
        factors = {}
        for kind, axes, own, bound in (
            ("in_Mr", self.into, in_key, in_bound),
            ("out_Mr", self.out, out_key, out_bound),
        ):
            size = (self.num_layers, shape.modules, shape.rank, *(self.sizes[a] for a in axes))
            factors[self._name(kind, axes)] = _uniform(own, size, bound, self.dtype)
        if shape.scaled:
            size = (self.num_layers, shape.modules, *(self.sizes[axis] for axis in self.out))
            factors[self._name("scale_M", self.out)] = jnp.zeros(size, self.dtype)
        return factors

    def delta(self, factors: Factors, shape: Shape) -> jax.Array:
        # By position, not by letter: a router's E x E matrix has one letter twice. x, y, z: layer,
        # module, rank.
        into, out = ("".join("abcdef"[axis] for axis in axes) for axes in (self.into, self.out))
        up = factors[self._name("out_Mr", self.out)]
        if shape.scaled:
            scale = factors[self._name("scale_M", self.out)]
            up = up * scale[:, :, None]
        down = factors[self._name("in_Mr", self.into)]
        whole = "abcdef"[: len(self.letters)]
        return (shape.alpha / shape.rank) * _einsum(f"xyz{into},xyz{out}->x{whole}", down, up)

    def _name(self, kind: str, axes: tuple[int, ...]) -> str:
        return kind + "".join(self.letters[axis] for axis in axes)


@dataclasses.dataclass(frozen=True, eq=False)
class OfExperts:
    """The matrices of a layer's routed experts, `[L, N, U, D]`, of any widths.

    Attributes:
      down: whether the matrix leads from the hidden units to the model width.
      sizes: `(L, N, U, D)` as the model holds them.
      pair_N: int32, for each unit that is held the pair of factors that it belongs to.
      pairs: how many there are: one for each expert that has units, or one in all.
      fan_in_N: for each unit in config order the width of its expert.
      placement: where units are held.
      dtype: of the factors.
    """

    down: bool
    sizes: tuple[int, int, int, int]
    pair_N: Ints
    pairs: int
    fan_in_N: Ints
    placement: Placement | None
    dtype: np.dtype[Any]

    def init(self, key: jax.Array, shape: Shape) -> Factors:
        layers, units, unit, d_model = self.sizes
        in_key, out_key = jax.random.split(key)
        # Drawn in config order: the same numbers on any mesh. Padding gets zeros.
        hidden = (layers, len(self.fan_in_N), unit, shape.modules, shape.rank)
        model = (layers, self.pairs, shape.modules, shape.rank, d_model)
        scale: tuple[int, ...]
        if self.down:
            in_bound, out_bound = first_bounds(self.fan_in_N[:, None, None, None], shape)
            factors = {
                "in_NUMr": self._placed(_uniform(in_key, hidden, in_bound, self.dtype)),
                "out_EMrD": _uniform(out_key, model, out_bound, self.dtype),
            }
            scale = (layers, self.pairs, shape.modules, d_model)
        else:
            in_bound, out_bound = first_bounds(d_model, shape)
            factors = {
                "in_EMrD": _uniform(in_key, model, in_bound, self.dtype),
                "out_NUMr": self._placed(_uniform(out_key, hidden, out_bound, self.dtype)),
            }
            scale = (layers, units, unit, shape.modules)
        if shape.scaled:
            factors[self._scale] = jnp.zeros(scale, self.dtype)
        return factors

    def delta(self, factors: Factors, shape: Shape) -> jax.Array:
        hidden, model = ("in", "out") if self.down else ("out", "in")
        hidden_LNUMr, model_LEMrD = factors[f"{hidden}_NUMr"], factors[f"{model}_EMrD"]
        if shape.scaled and self.down:
            model_LEMrD = model_LEMrD * factors[self._scale][:, :, :, None]
        elif shape.scaled:
            hidden_LNUMr = hidden_LNUMr * factors[self._scale][..., None]
        if self.pairs == 1:
            delta = _einsum("lnumr,lmrd->lnud", hidden_LNUMr, model_LEMrD[:, 0])
        else:
            model_LNMrD = model_LEMrD[:, self.pair_N]
            delta = _einsum("lnumr,lnmrd->lnud", hidden_LNUMr, model_LNMrD)
        return (shape.alpha / shape.rank) * delta

    @property
    def _scale(self) -> str:
        return "scale_EMD" if self.down else "scale_NUM"

    def _placed(self, x_LNUMr: jax.Array) -> jax.Array:
        if self.placement is None:
            return x_LNUMr
        placed: jax.Array = self.placement.place(x_LNUMr, 1)
        return placed


@dataclasses.dataclass(frozen=True, eq=False)
class LowRank:
    """Low-rank updates beside a frozen base; a `Tuning` (`moejax.train.tuning`).

    The trainable tree has, where the base has a matrix `q_DHd`, its factors: `q_DHd/in_MrD` and so
    on. The frozen tree is the whole base.

    Attributes:
      template: shapes and dtypes of the base.
      updates: by path the update of each adapted array.
      shape: rank, modules and scale of all of them.
      routes: whether routers are adapted.
    """

    template: Tree
    updates: Mapping[str, Update]
    shape: Shape
    routes: bool = False

    def split(self, params: Tree, key: jax.Array) -> tuple[Tree, Tree]:
        """`(trainable, frozen)`; what an array draws does not depend on which others are
        adapted."""
        trainable = {
            f"{path}/{name}": factor
            for path, update in self.updates.items()
            for name, factor in update.init(
                jax.random.fold_in(key, zlib.crc32(path.encode())), self.shape
            ).items()
        }
        return nested(trainable), params

    def assemble(self, trainable: Tree, frozen: Tree) -> Tree:
        """The whole parameters, updates added, each in the dtype of the base's array."""
        old, deltas = flat(frozen), self.deltas(trainable)

        def whole(path: str) -> jax.Array:
            leaf: jax.Array = old[path]
            return leaf if path not in deltas else (leaf + deltas[path]).astype(leaf.dtype)

        return filled(self.template, whole)

    def deltas(self, trainable: Tree) -> dict[str, jax.Array]:
        """What is added to each adapted array, by its path."""
        factors: dict[str, Factors] = {}
        for path, factor in flat(trainable).items():
            owner, _, name = path.rpartition("/")
            factors.setdefault(owner, {})[name] = factor
        return {path: self.updates[path].delta(own, self.shape) for path, own in factors.items()}


def update_of(leaf: Leaf, per_expert: bool) -> Update:
    """The update of an array, which must be a matrix.

    Args:
      per_expert: one pair of factors for each routed expert; else one for all of a layer, whose
        matrices then share the factor on the side of the model width.
    """
    dtype = np.dtype(jnp.promote_types(leaf.dtype, jnp.float32))
    if leaf.role != "routed":
        return Plain(leaf.letters, input_axes(leaf), leaf.shape[1:], leaf.shape[0], dtype)
    assert leaf.moe is not None
    spec = leaf.moe.spec
    busy = [expert for expert, width in enumerate(spec.widths) if width]
    pair_of = np.zeros(spec.num_experts + 1, np.int32)  # the last is nobody's: -1, padding
    if per_expert:
        pair_of[busy] = np.arange(len(busy))
    layers, units, unit, d_model = leaf.shape
    return OfExperts(
        down=leaf.name == "down_NUD",
        sizes=(layers, units, unit, d_model),
        pair_N=pair_of[leaf.expert_N],
        pairs=len(busy) if per_expert else 1,
        fan_in_N=np.repeat(spec.widths, spec.units).astype(np.int32),
        placement=leaf.placement,
        dtype=dtype,
    )


def input_axes(leaf: Leaf) -> tuple[int, ...]:
    """The axes of a matrix that its input lies along, layers not counted: an FFN's rows are hidden
    units, an output projection ends in the model width, any other matrix begins with its input."""
    letters = leaf.letters
    if leaf.role in ("dense", "shared"):
        return (0,) if leaf.name.startswith("down_") else (1,)
    return tuple(range(len(letters) - 1)) if letters[-1] == "D" else (0,)


def first_bounds(fan_in: Any, shape: Shape) -> tuple[Any, float]:
    """Bounds of the uniform first values of A and of B: those of torch's linear layers
    (`kaiming_uniform_(a=sqrt(5))`), `fan_in**-0.5`; LoRA's B is zero."""
    return fan_in**-0.5, shape.rank**-0.5 if shape.scaled else 0.0


def _uniform(key: jax.Array, shape: tuple[int, ...], bound: Any, dtype: np.dtype[Any]) -> jax.Array:
    if isinstance(bound, float) and bound == 0:
        return jnp.zeros(shape, dtype)
    return (jax.random.uniform(key, shape, minval=-1.0, maxval=1.0) * bound).astype(dtype)


def _einsum(spec: str, *factors: jax.Array) -> jax.Array:
    # A merged model must be the model that was trained: no shortcuts in the multiplications.
    return jnp.einsum(spec, *factors, precision=jax.lax.Precision.HIGHEST)
