"""Experts: copies of one module with parameters of their own, run as one."""

import math
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Float

from softmoe import sharding
from softmoe.errors import UserError

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
      ValueError: `init` is unknown, or `num_experts` is below 1 or not a
        multiple of the mesh axis `expert`.
    """
    if init not in INITS:
      raise UserError('expert_init', init, f'one of {INITS}')
    if num_experts < 1:
      raise UserError('num_experts', num_experts, 'at least 1')
    _check_divides(num_experts)
    keys = jax.random.split(rngs.params(), num_experts)
    if init == 'identical':
      keys = jnp.broadcast_to(keys[0], keys.shape)
    # Split keys make split parameters: no device ever holds all the experts.
    keys = sharding.by_expert(keys)
    self.stacked = jax.vmap(lambda key: create(nnx.Rngs(key)))(keys)

  def __call__(self, x: Float[Array, 'e *b d']) -> Float[Array, 'e *b d_out']:
    """Applies expert i to x[i]."""
    return jax.vmap(lambda expert, x: expert(x))(self.stacked, x)

  def flops(self) -> int:
    """Returns the FLOPs of one expert's matrices on one token."""
    shapes = (w.shape for w in jax.tree.leaves(self.stacked))
    return sum(2 * math.prod(s[1:]) for s in shapes if len(s) >= 3)


def _check_divides(num_experts: int):
  if sharding.is_explicit('expert'):
    size = jax.sharding.get_abstract_mesh().shape['expert']
    if num_experts % size:
      raise UserError(
        'num_experts',
        num_experts,
        f'a multiple of {size}, the size of the mesh axis `expert`',
      )
