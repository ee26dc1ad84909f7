"""LayerNorm as the models have it."""

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Float

from softmoe.models import config as config_lib


class LayerNorm(nnx.LayerNorm):
  """LayerNorm whose backward pass computes it again from its input.

  Its derivative would keep several float32 arrays of the input's size, and
  under a scan over blocks write each of them.
  """

  def __call__(self, x: Float[Array, '*b d']) -> Float[Array, '*b d']:
    """Normalises the last axis."""
    return jax.checkpoint(super().__call__, prevent_cse=False)(x)


def layer_norm(
  config: config_lib.TransformerConfig,
  width: int,
  *,
  use_bias: bool = True,
  rngs: nnx.Rngs,
) -> LayerNorm:
  """Returns a LayerNorm of the model's types and epsilon."""
  return LayerNorm(
    width,
    epsilon=config.norm_epsilon,
    use_bias=use_bias,
    dtype=jnp.dtype(config.dtype),
    param_dtype=jnp.dtype(config.param_dtype),
    rngs=rngs,
  )
