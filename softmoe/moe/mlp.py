"""The transformer's MLP, which is also the default expert."""

from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from softmoe.moe.execution import grouped_matmul


class Mlp(nnx.Module):
  """Linear, GELU (tanh approximation), Linear.

  Kernels start Xavier uniform and biases normal(1e-6), as in AugReg
  (https://arxiv.org/abs/2106.10270).
  """

  def __init__(
    self,
    width: int,
    mlp_dim: int,
    *,
    dtype: jax.typing.DTypeLike | None = None,
    param_dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    init = nnx.initializers
    self.dtype = dtype
    options = dict(
      kernel_init=init.xavier_uniform(),
      bias_init=init.normal(1e-6),
      dtype=dtype,
      param_dtype=param_dtype,
      rngs=rngs,
    )
    self.up = nnx.Linear(width, mlp_dim, **options)
    self.down = nnx.Linear(mlp_dim, width, **options)

  def __call__(self, x: Float[Array, '*b d']) -> Float[Array, '*b d']:
    """Applies the MLP to every token by itself."""
    return self.down(jax.nn.gelu(self.up(x), approximate=True))

  def gated(
    self, x: Float[Array, 'n d'], gates: Float[Array, ' n']
  ) -> Float[Array, 'n d']:
    """Returns each row's output times its gate.

    The gates enter before the last matmul, so that their gradient does not need
    its output.
    """
    h = jax.nn.gelu(self.up(x), approximate=True)
    down: Any = self.down
    h, kernel, bias, gates = down.promote_dtype(
      (h, down.kernel[...], down.bias[...], gates[:, None]), dtype=down.dtype
    )
    return (gates * h) @ kernel + gates * bias[None]

  def grouped(
    self, x: Float[Array, 'n d'], group_sizes: Int[Array, ' e']
  ) -> Float[Array, 'n d']:
    """Applies a stack of e MLPs to rows that are sorted by expert.

    Args:
      x: rows; those past the last group's come back as anything.
      group_sizes: number of rows of each expert.
    """
    h = _grouped_linear(self.up, x, group_sizes)
    h = jax.nn.gelu(h, approximate=True)
    return _grouped_linear(self.down, h, group_sizes)


def _grouped_linear(
  linear: Any, x: Float[Array, 'n d'], group_sizes: Int[Array, ' e']
) -> Float[Array, 'n f']:
  x, kernel, bias = linear.promote_dtype(
    (x, linear.kernel[...], linear.bias[...]), dtype=linear.dtype
  )
  group = jnp.repeat(
    jnp.arange(len(group_sizes)), group_sizes, total_repeat_length=len(x)
  )
  return grouped_matmul.grouped_matmul(x, kernel, group_sizes) + bias[group]
