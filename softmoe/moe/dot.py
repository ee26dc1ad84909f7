"""The product of tokens and a matrix, as `nnx.Linear` takes it."""

from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from softmoe import sharding


def dot_general(
  x: Float[Array, '*b d'],
  kernel: Float[Array, 'd f'],
  dimension_numbers: Any,
  **options: Any,
) -> Float[Array, '*b f']:
  """Does what `jax.lax.dot_general` does, on a CPU with all tokens as rows.

  With two leading axes or more, XLA transposes both sides for the gradient of a
  kernel on a CPU, and multiplies such arrays at half the speed or less.

  Args:
    x: tokens.
    kernel: the matrix.
    dimension_numbers: last axis of `x` with the first of `kernel`.
    **options: of `jax.lax.dot_general`.
  """
  few = x.ndim < 3 or not sharding.has_rows(x)
  if few or sharding.platform() != 'cpu':
    return jax.lax.dot_general(x, kernel, dimension_numbers, **options)
  return sharding.on_rows(lambda rows: multiply(rows, kernel, **options), x)


def multiply(
  rows: Float[Array, 'n d'], kernel: Float[Array, 'd f'], **options: Any
) -> Float[Array, 'n f']:
  """Returns the product of rows and a matrix, with gradients for a CPU.

  XLA multiplies by a transposed left side, as the gradient of the matrix is
  written, slower than it copies it and multiplies the copy. Of hidden units
  there are too many: the copy would cost what it saves.
  """
  dot = lambda x, kernel, side: jax.lax.dot_general(
    x, kernel, (((side,), (0,)), ((), ())), **options
  )
  if sharding.platform() != 'cpu':
    return dot(rows, kernel, 1)
  product = jax.custom_vjp(lambda rows, kernel: dot(rows, kernel, 1))

  def forward(rows, kernel):
    return dot(rows, kernel, 1), (rows, kernel)

  def backward(kept, dy):
    rows, kernel = kept
    many = rows.shape[1] > kernel.shape[1]
    columns = rows.T if many else jax.lax.optimization_barrier(rows.T)
    of_rows = jax.linear_transpose(lambda rows: dot(rows, kernel, 1), rows)
    of_kernel = jax.linear_transpose(lambda k: dot(columns, k, 0), kernel)
    return *of_rows(dy), *of_kernel(dy)

  product.defvjp(forward, backward)
  return product(rows, kernel)


def transposed(x: Float[Array, '*b n m']) -> Float[Array, '*b m n']:
  """Swaps the last two axes, on a CPU by a copy.

  As long as it is a view, XLA merges it with products before and after it, and
  multiplies by transposed sides. The gradient is a copy too.
  """
  x = jnp.swapaxes(x, -1, -2)
  return jax.lax.optimization_barrier(x) if sharding.platform() == 'cpu' else x
