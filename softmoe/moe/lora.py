"""Low-rank adaptation: kernels W + A B, to train A and B with W frozen.

Hu et al., 2021, https://arxiv.org/abs/2106.09685, with alpha equal to the rank:
its other values do what another learning rate does.
"""

from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp

from softmoe.errors import UserError


def add(module: Any, rank: int, rngs: nnx.Rngs) -> Any:
  """Returns the module with A and B beside each kernel; B starts at 0.

  Raises:
    UserError: a kernel has no larger rank itself.
  """
  for linear in _linears(module):
    width, units = linear.kernel.shape
    if rank >= min(width, units):
      expected = f'below {min(width, units)}, the smaller side of a kernel'
      raise UserError('lora_rank', rank, expected)
    dtype = linear.kernel.dtype
    draw = nnx.initializers.lecun_normal()
    linear.lora_a = nnx.Param(draw(rngs.params(), (width, rank), dtype))
    linear.lora_b = nnx.Param(jnp.zeros((rank, units), dtype))
  return module


def merged(module: Any) -> Any:
  """Returns a copy of a module, or of a stack of them, with A B in W."""
  copy = jax.tree.map(lambda w: w, module)
  for linear in _linears(copy):
    if hasattr(linear, 'lora_a'):
      product = linear.lora_a[...] @ linear.lora_b[...]
      linear.kernel[...] = linear.kernel[...] + product
      del linear.lora_a, linear.lora_b
  return copy


def _linears(module: Any) -> list[Any]:
  found = (each for _, each in nnx.iter_modules(module))
  return [each for each in found if isinstance(each, nnx.Linear)]
