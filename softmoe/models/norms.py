"""LayerNorm as the models have it."""

from flax import nnx
from jax import numpy as jnp

from softmoe.models import config as config_lib


def layer_norm(
  config: config_lib.TransformerConfig,
  width: int,
  *,
  use_bias: bool = True,
  rngs: nnx.Rngs,
) -> nnx.LayerNorm:
  """Returns a LayerNorm of the model's types and epsilon."""
  return nnx.LayerNorm(
    width,
    epsilon=config.norm_epsilon,
    use_bias=use_bias,
    dtype=jnp.dtype(config.dtype),
    param_dtype=jnp.dtype(config.param_dtype),
    rngs=rngs,
  )
