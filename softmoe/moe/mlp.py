"""The transformer's MLP, which is also the default expert."""

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Float


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
