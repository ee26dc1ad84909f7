"""LayerNorm as the models have it."""

from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Float

from softmoe import recompute
from softmoe.models import config as config_lib


class LayerNorm(nnx.LayerNorm):
  """LayerNorm whose backward pass keeps its input alone."""

  def __call__(self, x: Float[Array, '*b d']) -> Float[Array, '*b d']:
    """Normalises the last axis."""
    return recompute.from_arguments(nnx.LayerNorm.__call__)(self, x)


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
