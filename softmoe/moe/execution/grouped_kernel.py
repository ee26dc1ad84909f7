"""Grouped matmuls as GPU kernels, which copy no matrix.

A program takes a block of rows of one expert, finds in small arrays which
expert and which rows these are, and reads tiles of that expert's matrix where
it lies. Rows need no padding: a block that an expert does not fill is masked.

Axes: `n` rows, sorted by expert, `d` width, `e` experts, `f` output width, `v`
blocks of rows.
"""

import functools
from collections.abc import Callable

import jax
from jax import numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from softmoe import sharding
from softmoe.moe.execution import tiles, varying

ROWS = 128  # of a block
TILE = 128  # of a result's columns
STEP = 64  # of what a turn of a kernel's loop sums over


@jax.custom_vjp
def grouped_matmul(
  x: Float[Array, 'n d'],
  w: Float[Array, 'e d f'],
  group_sizes: Int[Array, ' e'],
) -> Float[Array, 'n f']:
  """Returns every row times its expert's matrix; 0 past the last expert's."""
  return _multiply(x, w, group_sizes, False)


def _forward(x, w, group_sizes):
  return grouped_matmul(x, w, group_sizes), (x, w, group_sizes)


def _backward(residuals, dy):
  x, w, group_sizes = residuals
  dx = _multiply(dy, w, group_sizes, True).astype(x.dtype)
  return dx, _weight_gradient(x, dy, group_sizes).astype(w.dtype), None


grouped_matmul.defvjp(_forward, _backward)


def _multiply(x, w, group_sizes, transposed: bool) -> Float[Array, 'n f']:
  """Returns rows times matrices, or times what these are transposed."""
  n, f = len(x), w.shape[1 if transposed else 2]
  blocks = _blocks(group_sizes, n)
  kernel = functools.partial(_rows_kernel, transposed=transposed)
  # Programs that follow each other share rows and a matrix.
  grid = pl.cdiv(f, TILE), len(blocks[0])
  return _call(kernel, grid, (n, f), x.dtype, *blocks, x, w)


def _weight_gradient(x, dy, group_sizes) -> Float[Array, 'e d f']:
  shape = len(group_sizes), x.shape[1], dy.shape[1]
  ends = jnp.cumsum(group_sizes)
  grid = pl.cdiv(shape[2], TILE), pl.cdiv(shape[1], TILE), shape[0]
  starts = ends - group_sizes
  return _call(_weight_kernel, grid, shape, x.dtype, starts, ends, x, dy)


def _blocks(
  group_sizes: Int[Array, ' e'], n: int
) -> tuple[Int[Array, ' v'], Int[Array, ' v'], Int[Array, ' v']]:
  """Returns of each block its expert, first row and end; some are empty.

  Rows past the last expert's are those of an expert `e` that is not there.
  """
  rest = n - jnp.sum(group_sizes, keepdims=True)
  sizes = jnp.concatenate([group_sizes, rest])
  ends, counts = jnp.cumsum(sizes), pl.cdiv(sizes, ROWS)
  block_ends = jnp.cumsum(counts)
  block = jnp.arange(n // ROWS + len(sizes), dtype=jnp.int32)
  owner = jnp.searchsorted(block_ends, block, side='right')
  expert = jnp.minimum(owner, len(group_sizes)).astype(jnp.int32)
  turn = block - (block_ends - counts)[expert]
  return expert, (ends - sizes)[expert] + ROWS * turn, ends[expert]


def _rows_kernel(expert, start, end, x, w, y, *, transposed):
  column, block = pl.program_id(0) * TILE, pl.program_id(1)
  owner, row, stop = expert[block], start[block], end[block]
  d, f = x.shape[1], y.shape[1]
  rows, columns = (row, ROWS, stop), (column, TILE, f)

  def step(k, total):
    depth = k * STEP, STEP, d
    a = tiles.load(x, rows, depth)
    b = (
      tiles.load(w, columns, depth, owner).T
      if transposed
      else tiles.load(w, depth, columns, owner)
    )
    return total + _dot(a, b)

  zeros = jnp.zeros((ROWS, TILE), jnp.float32)
  multiply = lambda: jax.lax.fori_loop(0, pl.cdiv(d, STEP), step, zeros)
  real = (row < stop) & (owner < w.shape[0])
  tiles.store(y, jax.lax.cond(real, multiply, lambda: zeros), rows, columns)


def _weight_kernel(start, end, x, dy, dw):
  column, row, owner = (pl.program_id(i) for i in range(3))
  first, stop = start[owner], end[owner]
  rows = row * TILE, TILE, dw.shape[1]
  columns = column * TILE, TILE, dw.shape[2]

  def step(k, total):
    depth = first + k * STEP, STEP, stop
    return total + _dot(
      tiles.load(x, depth, rows).T, tiles.load(dy, depth, columns)
    )

  total = jnp.zeros((TILE, TILE), jnp.float32)
  total = jax.lax.fori_loop(0, pl.cdiv(stop - first, STEP), step, total)
  tiles.store(dw, total, rows, columns, owner)


def _dot(a: Float[Array, 'n d'], b: Float[Array, 'd f']) -> Float[Array, 'n f']:
  return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _call(
  kernel: Callable[..., None],
  grid: tuple[int, ...],
  shape: tuple[int, ...],
  dtype: jax.typing.DTypeLike,
  *arguments: Array,
) -> Array:
  """Runs a kernel; on a CPU, step by step in JAX."""
  arguments, varies = varying.alike(*arguments)
  return pl.pallas_call(
    kernel,
    jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=varies),
    grid=grid,
    compiler_params=triton.CompilerParams(num_warps=8, num_stages=3),
    interpret=sharding.platform() == 'cpu',
  )(*arguments)
