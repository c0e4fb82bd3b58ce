"""Matrix products of sorted rows with the matrix of their group, by name.

A *grouped matmul* multiplies `sizes_G[0]` rows with the first matrix, the next `sizes_G[1]` with
the second, and so on. Of rows behind the last group nothing is computed. Three products are all
that an FFN and its gradients need; with `A`, `B` the widths of the two sides of a matrix:

    nt(a_RB, w_GAB, sizes_G) -> [R, A]       row r times the transpose of its matrix
    nn(a_RA, w_GAB, sizes_G) -> [R, B]       row r times its matrix
    tn(a_RA, b_RB, sizes_G)  -> [G, A, B]    sum over the rows of a group of their outer products

The results have the dtype of the operands; sums are float32 or better. Rows behind the last group
must be finite (their outer products are multiplied by 0) and come out as 0.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from moejax.config.knobs import ConfigError, nearest

Product = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

MATMULS = ("ragged_dot", "megablox", "tokamax")
"""Names of grouped matmuls."""

_NT, _NN, _TN = (
    lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(contracting, ([], [])),
        lhs_ragged_dimensions=[0],
        rhs_group_dimensions=groups,
    )
    for contracting, groups in ((([1], [2]), [0]), (([1], [1]), [0]), (([0], [0]), []))
)

ROW_TILES = (512, 256, 128)
"""Rows per tile of the megablox kernels; row buffers are a multiple of one of them."""


def chosen(name: str, platform: str) -> str:
    """The grouped matmul that `auto` means: `megablox` on a TPU, where the gradient of `ragged_dot`
    for the weights is dense (docs/performance.md); `ragged_dot` elsewhere."""
    if name != "auto":
        return name
    return "megablox" if platform == "tpu" else "ragged_dot"


def check_installed(name: str, path: str) -> None:
    """Raises ConfigError when the named grouped matmul is in a package that is not installed."""
    if name == "tokamax" and importlib.util.find_spec("tokamax") is None:
        raise ConfigError(
            f"{path}='tokamax': the package tokamax is not installed; install it with "
            f"pip install \"moejax[tpu]\"; nearest valid value 'auto'"
        )


def products(name: str, platform: str, dtype: jnp.dtype) -> tuple[Product, Product, Product]:
    """`nt`, `nn` and `tn` of a grouped matmul.

    Args:
      name: in `MATMULS`, or "auto".
      platform: what the program is lowered for: "cpu", "tpu", "cuda" or "rocm".
      dtype: of the operands.

    Raises:
      ConfigError: there is no such matmul, or not on that platform, for that dtype, or installed.
    """
    name = chosen(name, platform)
    where = f"grouped_matmul={name!r}"
    if name not in MATMULS:
        raise ConfigError(
            f"{where}: must be auto, {', '.join(MATMULS)}{nearest(name, ('auto', *MATMULS))}"
        )
    if name == "ragged_dot":
        return _by_dimensions(lax.ragged_dot_general)
    if name == "tokamax":
        return _by_dimensions(_tokamax(platform))
    if platform not in ("tpu", "cpu"):
        raise ConfigError(
            f"{where}: a kernel for TPUs, but the program is for {platform}; nearest valid value "
            f"'ragged_dot'"
        )
    if dtype not in (jnp.float32, jnp.bfloat16):
        raise ConfigError(
            f"{where}: computes float32 and bfloat16, but x is {dtype}; nearest valid value "
            f"'ragged_dot'"
        )
    return _megablox(interpret=platform == "cpu")


def _tokamax(platform: str) -> Callable[..., jax.Array]:
    check_installed("tokamax", "grouped_matmul")
    import tokamax

    # Left to itself on a TPU it falls back to XLA, whose weight gradient is dense, wherever JAX's
    # default device is no TPU.
    implementation = {"tpu": "mosaic_tpu", "cpu": "xla"}.get(platform)
    return functools.partial(tokamax.ragged_dot_general, implementation=implementation)


def _by_dimensions(
    ragged_dot_general: Callable[..., jax.Array],
) -> tuple[Product, Product, Product]:
    def product(numbers: lax.RaggedDotDimensionNumbers) -> Product:
        def multiply(a: jax.Array, b: jax.Array, sizes_G: jax.Array) -> jax.Array:
            acc = jnp.promote_types(a.dtype, jnp.float32)
            out = ragged_dot_general(
                a,
                b,
                group_sizes=sizes_G,
                ragged_dot_dimension_numbers=numbers,
                preferred_element_type=acc if numbers is _TN else a.dtype,
            ).astype(a.dtype)
            return out if numbers is _TN else _only_groups(out, sizes_G)

        return multiply

    return product(_NT), product(_NN), product(_TN)


def _megablox(interpret: bool) -> tuple[Product, Product, Product]:
    # Here and not above: only a TPU needs Pallas.
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm, tgmm

    def rows_by_matrix(
        a: jax.Array, w_GAB: jax.Array, sizes_G: jax.Array, transpose_rhs: bool
    ) -> jax.Array:
        width_out = w_GAB.shape[1 if transpose_rhs else 2]
        tiling = megablox_tiling(a.shape, width_out, len(sizes_G), a.dtype)
        out = gmm(
            a, w_GAB, sizes_G, a.dtype, tiling, transpose_rhs=transpose_rhs, interpret=interpret
        )
        return _only_groups(out, sizes_G)

    def tn(a_RA: jax.Array, b_RB: jax.Array, sizes_G: jax.Array) -> jax.Array:
        tiling = megablox_tiling(a_RA.shape, b_RB.shape[1], len(sizes_G), a_RA.dtype)
        return tgmm(a_RA.swapaxes(0, 1), b_RB, sizes_G, a_RA.dtype, tiling, interpret=interpret)

    return (
        functools.partial(rows_by_matrix, transpose_rhs=True),
        functools.partial(rows_by_matrix, transpose_rhs=False),
        tn,
    )


def megablox_tiling(
    shape: tuple[int, ...], width_out: int, groups: int, dtype: jnp.dtype
) -> tuple[int, int, int]:
    """Sizes of a megablox tile: rows, and units on either side of the matrix.

    A tile that two groups share is computed twice, so tiles have no more rows than a group has on
    average. A side is cut into equal multiples of 128 that fit: three buffers of two operands and
    a float32 sum must fit into 16 MiB of VMEM together. Chosen by these rules, not tuned.
    """
    rows, width_in = shape
    fitting = [tile for tile in ROW_TILES if rows % tile == 0]
    row_tile = next((tile for tile in fitting if tile * groups <= rows), fitting[-1])
    longest = 1024 if jnp.dtype(dtype).itemsize <= 2 else 512

    def side(width: int) -> int:
        if width <= longest:
            return width
        return -(-width // (-(-width // longest) * 128)) * 128

    return row_tile, side(width_in), side(width_out)


def _only_groups(out_RN: jax.Array, sizes_G: jax.Array) -> jax.Array:
    """`out_RN` with rows behind the last group set to 0: kernels leave them as they found them."""
    in_a_group_R = jnp.arange(out_RN.shape[0]) < sizes_G.sum()
    return jnp.where(in_a_group_R[:, None], out_RN, 0)
