"""The products of the rows of each expert with its matrix, all at once.

Axes: `e` experts, `n` rows of each, `d` and `f` widths.
"""

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from softmoe import sharding
from softmoe.moe import dot

FEW = 4  # rows are few where a matrix has so many times as many, either way


def multiply(
  rows: Float[Array, 'e n d'], kernels: Float[Array, 'e d f']
) -> Float[Array, 'e n f']:
  """Returns the rows of each expert times its matrix.

  Where rows are few, reading the matrices is most of the work, and XLA reads
  them on a CPU at half the speed or less unless they are used as they lie in
  memory: rows enter as columns, and their gradient is made as columns.
  """
  few = FEW * rows.shape[1] <= min(kernels.shape[1:])
  if sharding.platform() == 'cpu' and few:
    return _multiply(rows, kernels)
  return jnp.einsum('end,edf->enf', rows, kernels)


@jax.custom_vjp
def _multiply(rows, kernels):
  return jnp.einsum('edn,edf->enf', dot.transposed(rows), kernels)


def _forward(rows, kernels):
  return _multiply(rows, kernels), (rows, kernels)


def _backward(kept, dy):
  rows, kernels = kept
  # Without the barrier XLA would make the rows themselves.
  columns = jnp.einsum('edf,enf->edn', kernels, dy)
  drows = jnp.swapaxes(jax.lax.optimization_barrier(columns), 1, 2)
  return drows, jnp.einsum('end,enf->edf', rows, dy)


_multiply.defvjp(_forward, _backward)
