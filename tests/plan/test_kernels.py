"""Grouped matmuls, against what their blocks add up to by hand."""

import jax
import pytest
from jax import numpy as jnp

from softmoe.moe.execution import grouped_kernel as gk
from softmoe.moe.execution import weight_kernel as wk
from softmoe.plan import flop_count, kernels

N, D, F, E = 1024, 256, 512, 4
BLOCKS = N // gk.ROWS + E + 1
TILES = F // gk.TILE
EVERY = 10**6


def shape(*sizes, dtype=jnp.bfloat16):
  return jax.ShapeDtypeStruct(sizes, dtype)


X, W, DY = shape(N, D), shape(E, D, F), shape(N, F)
SIZES = shape(E, dtype=jnp.int32)


def num_bytes(function, processors, *arguments):
  jaxpr = jax.jit(function).trace(*arguments).jaxpr

  def price(equation):
    if equation.primitive.name != 'pallas_call':
      return None
    return kernels.num_bytes(equation, processors), True

  return flop_count.count(jaxpr, price)[0]


def forward(x, w, sizes):
  return gk.grouped_matmul(x, w, sizes)


def backward(x, w, sizes, dy):
  return jax.vjp(lambda x, w: forward(x, w, sizes), x, w)[1](dy)


def test_one_program_at_a_time_reads_all_that_it_asks_for():
  rows, columns, result = gk.ROWS * D, D * gk.TILE, gk.ROWS * gk.TILE
  table = 3 * 4
  each = 2 * (rows + columns + result) + table
  assert num_bytes(forward, 1, X, W, SIZES) == TILES * BLOCKS * each


def test_all_programs_at_a_time_read_everything_once():
  table = BLOCKS * 3 * 4
  once = 2 * (N * D + E * D * F + N * F) + table
  assert num_bytes(forward, EVERY, X, W, SIZES) == once


def test_programs_of_a_wave_share_rows_and_matrices():
  """Two blocks of rows at a time, of which a matrix has more than two."""
  each = num_bytes(forward, 2 * TILES, X, W, SIZES) / (BLOCKS / 2)
  rows = 2 * 2 * gk.ROWS * D * (1 + N / gk.ROWS / BLOCKS) / 2
  matrices = 2 * D * F * (1 + E / BLOCKS)
  results = 2 * 2 * gk.ROWS * F * (1 + N / gk.ROWS / BLOCKS) / 2
  assert each == pytest.approx(rows + matrices + results, rel=1e-3)


def test_a_gradient_of_matrices_reads_the_rows_of_its_group():
  programs = (D // gk.TILE) * TILES * E
  turns = N // E // gk.STEP
  tiles = 2 * turns * gk.STEP * 2 * gk.TILE + 2 * gk.TILE**2
  rows, columns, result = gk.ROWS * F, F * gk.TILE, gk.ROWS * gk.TILE
  of_rows = D // gk.TILE * BLOCKS * (2 * (rows + columns + result) + 3 * 4)
  moved = num_bytes(backward, 1, X, W, SIZES, DY)
  assert moved == programs * (tiles + 2 * 4) + of_rows


def test_a_kernel_of_a_tpu_reads_rows_again_for_each_tile_of_columns():
  n, d, f = 8 * wk.ROWS, 2 * wk.TILE, 3 * wk.TILE
  shapes = shape(n, d), shape(n, f), SIZES
  run = lambda x, dy, sizes: wk.weight_gradient(x, dy, sizes, x.dtype)
  jaxpr = jax.jit(run).trace(*shapes).jaxpr

  def price(equation):
    if equation.primitive.name != 'pallas_call':
      return None
    return kernels.reread_bytes(equation), True

  again, _ = flop_count.count(jaxpr, price)
  assert again == 2 * n * (2 * d + 1 * f)  # passes beyond the first
  num_flops, exact = flop_count.count(jaxpr)
  assert exact and num_flops == 2 * (n + E * wk.ROWS) * d * f
