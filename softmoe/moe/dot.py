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
  first, *rest = jax.typeof(x).sharding.spec or (None,)
  if x.ndim < 3 or any(rest) or sharding.platform() != 'cpu':
    return jax.lax.dot_general(x, kernel, dimension_numbers, **options)
  # Where the first axis is split, reshapes have to be told that it stays so.
  place: Any = {'out_sharding': jax.P(first)} if first else {}
  rows = jnp.reshape(x, (-1, x.shape[-1]), **place)
  y = jax.lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), **options)
  return jnp.reshape(y, (*x.shape[:-1], -1), **place)
