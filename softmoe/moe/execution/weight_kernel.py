"""Gradients of the experts' matrices as a TPU kernel, which copies no row.

`jax.lax.ragged_dot` is a kernel on TPU, and so is its gradient with respect to
the rows; that with respect to the matrices multiplies all rows once for every
expert, and masks. Here the grid visits an expert's blocks of rows one after
the other, and sums in on-chip memory. A block that two experts share is
visited for each, and the rows of the other are masked.

Axes: `n` rows, sorted by expert, `d` width, `e` experts, `f` output width, `v`
visits.
"""

from typing import Any

import jax
from jax import numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu
from jaxtyping import Array, Float, Int

from softmoe import sharding
from softmoe.moe.execution import varying

ROWS = 512  # of a block
TILE = 1024  # of rows and of columns of a result


def weight_gradient(
  x: Float[Array, 'n d'],
  dy: Float[Array, 'n f'],
  group_sizes: Int[Array, ' e'],
  dtype: jax.typing.DTypeLike,
) -> Float[Array, 'e d f']:
  """Returns for each expert the sum of the outer products of its rows.

  Args:
    x: rows, those of the first expert first.
    dy: rows of the same experts.
    group_sizes: rows of each expert, in all at most n.
    dtype: of the result, to which float32 sums are rounded once.
  """
  n, d, f = *x.shape, dy.shape[1]
  visits = _visits(group_sizes, n)
  tile_d, tile_f = min(TILE, d), min(TILE, f)
  block = lambda tile, index: pl.BlockSpec((ROWS, tile), index)
  (*visits, x, dy), varies = varying.alike(*visits, x, dy)
  return pl.pallas_call(
    _kernel,
    jax.ShapeDtypeStruct(
      (len(group_sizes), d, f), dtype, manual_axis_type=varies
    ),
    grid_spec=tpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(visits),
      grid=(pl.cdiv(f, tile_f), pl.cdiv(d, tile_d), len(visits[0])),
      in_specs=[
        block(tile_d, lambda f, d, v, expert, block, *_: (block[v], d)),
        block(tile_f, lambda f, d, v, expert, block, *_: (block[v], f)),
      ],
      out_specs=pl.BlockSpec(
        (1, tile_d, tile_f), lambda f, d, v, expert, *_: (expert[v], d, f)
      ),
      scratch_shapes=[tpu.VMEM((tile_d, tile_f), jnp.float32)],
    ),
    compiler_params=tpu.CompilerParams(
      dimension_semantics=('parallel', 'parallel', 'arbitrary')
    ),
    interpret=sharding.platform() != 'tpu',
  )(*visits, x, dy)


def _visits(
  group_sizes: Int[Array, ' e'], n: int
) -> tuple[
  Int[Array, ' v'], Int[Array, ' v'], Int[Array, ' v'], Int[Array, ' v']
]:
  """Returns of each visit its expert and block, and the rows that count.

  An expert without rows has a visit too, to write zeros. Visits that are left
  over are the last expert's, of no row.
  """
  ends = jnp.cumsum(group_sizes)
  starts = ends - group_sizes
  firsts = starts // ROWS
  counts = jnp.maximum(pl.cdiv(ends, ROWS) - firsts, 1)
  visit_ends = jnp.cumsum(counts)
  visit = jnp.arange(pl.cdiv(n, ROWS) + len(group_sizes), dtype=jnp.int32)
  owner = jnp.searchsorted(visit_ends, visit, side='right').astype(jnp.int32)
  expert = jnp.minimum(owner, len(group_sizes) - 1)
  block = firsts[expert] + visit - (visit_ends - counts)[expert]
  end = jnp.where(owner == expert, ends[expert], 0)
  block = jnp.minimum(block, pl.cdiv(n, ROWS) - 1)
  return expert, block, starts[expert], end


def _kernel(
  expert: Any,
  block: Any,
  start: Any,
  end: Any,
  x: Any,
  dy: Any,
  dw: Any,
  total: Any,
):
  visit, last = pl.program_id(2), pl.num_programs(2) - 1
  owner = expert[visit]
  is_first = (visit == 0) | (expert[jnp.maximum(visit - 1, 0)] != owner)
  is_last = (visit == last) | (expert[jnp.minimum(visit + 1, last)] != owner)

  @pl.when(is_first)
  def _():
    total[...] = jnp.zeros_like(total)

  @pl.when(start[visit] < end[visit])
  def _():
    row = jax.lax.broadcasted_iota(jnp.int32, (ROWS, 1), 0)
    row += block[visit] * ROWS
    real = (start[visit] <= row) & (row < end[visit])
    # Both, for a row past the last may hold what is no number.
    rows, outputs = (jnp.where(real, ref[...], 0) for ref in (x, dy))
    total[...] += jax.lax.dot_general(
      rows,
      outputs,
      (((0,), (0,)), ((), ())),
      preferred_element_type=jnp.float32,
    )

  @pl.when(is_last)
  def _():
    dw[0] = total[...].astype(dw.dtype)
