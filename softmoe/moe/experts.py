"""Experts: copies of one module with parameters of their own, run as one."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Float

from softmoe import sharding

INITS = ('independent', 'identical')


class Experts(nnx.Module):
  """Experts stacked along axis 0, split over the mesh axis `expert`.

  Attributes:
    stacked: the module that `create` returns, every parameter with a leading
      axis of size `num_experts`.
  """

  def __init__(
    self,
    create: Callable[[nnx.Rngs], Any],
    num_experts: int,
    *,
    init: str = 'independent',
    rngs: nnx.Rngs,
  ):
    """Creates the experts.

    Args:
      create: returns one expert, any module that maps (..., d) to (..., d').
      num_experts: how many.
      init: 'independent' draws each expert's parameters anew (the paper's
        appendix A), 'identical' starts all from the same (the authors' code).
      rngs: source of the parameters' keys.

    Raises:
      ValueError: `init` is unknown, or `num_experts` is not a multiple of the
        mesh axis `expert`.
    """
    if init not in INITS:
      raise ValueError(f'init: got {init!r}; one of {INITS}')
    _check_divides(num_experts)
    keys = jax.random.split(rngs.params(), num_experts)
    if init == 'identical':
      keys = jnp.broadcast_to(keys[0], keys.shape)
    # Split keys make split parameters: no device ever holds all the experts.
    keys = sharding.by_expert(keys)
    self.stacked = jax.vmap(lambda key: create(nnx.Rngs(key)))(keys)

  def __call__(
    self, x: Float[Array, 'e *b s d']
  ) -> Float[Array, 'e *b s d_out']:
    """Applies expert i to x[i]."""
    y = jax.vmap(lambda expert, x: expert(x))(
      self.stacked, sharding.by_expert(x)
    )
    return sharding.like(y, x)


def _check_divides(num_experts: int):
  if sharding.is_explicit('expert'):
    size = jax.sharding.get_abstract_mesh().shape['expert']
    if num_experts % size:
      raise ValueError(
        f'num_experts: got {num_experts}; a multiple of {size}, '
        'the size of the mesh axis `expert`'
      )
