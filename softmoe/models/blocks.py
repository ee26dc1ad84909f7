"""Parts that transformers share: attention, dropout, the pre-norm block.

Axes: `b` images, `n` tokens, `d` width, `h` heads, `k` width of a head.

Randomness comes in as a key; no key means evaluation, without dropout.
"""

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from softmoe import sharding
from softmoe.models import config as config_lib
from softmoe.models import mixtures
from softmoe.moe import layer

Key = PRNGKeyArray | None


def dropout(
  x: Float[Array, '*b'],
  rate: Float[Array, ''] | float,
  key: Key,
  shape: tuple[int, ...],
) -> Float[Array, '*b']:
  """Zeroes entries of `x` with probability `rate` and rescales the others.

  Args:
    x: any array.
    rate: probability, below 1; may be a traced scalar.
    key: None leaves `x` as it is.
    shape: of the mask, broadcast over x: (b, 1, 1) drops whole examples.
  """
  if key is None:
    return x
  keep = jax.random.bernoulli(key, 1 - rate, shape)
  return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


class Attention(nnx.Module):
  """Multi-head attention, with optional LayerNorm of queries and keys."""

  def __init__(
    self, config: config_lib.TransformerConfig, *, qk_norm: bool, rngs: nnx.Rngs
  ):
    width, self.num_heads = config.width, config.num_heads
    linear = lambda: nnx.Linear(
      width,
      width,
      kernel_init=nnx.initializers.xavier_uniform(),
      dtype=jnp.dtype(config.dtype),
      param_dtype=jnp.dtype(config.param_dtype),
      rngs=rngs,
    )
    self.query, self.key, self.value = linear(), linear(), linear()
    self.out = linear()
    norm = lambda: layer_norm(
      config, width // self.num_heads, use_bias=False, rngs=rngs
    )
    self.query_norm = norm() if qk_norm else None
    self.key_norm = norm() if qk_norm else None

  def __call__(
    self, x: Float[Array, 'b q d'], memory: Float[Array, 'b n d']
  ) -> Float[Array, 'b q d']:
    """Returns what the queries `x` read from `memory`."""
    query = self._heads(self.query(x), self.query_norm)
    key = self._heads(self.key(memory), self.key_norm)
    value = self._heads(self.value(memory), None)
    y = jnp.swapaxes(attend(query, key, value), 1, 2)  # b q h k
    return self.out(y.reshape(x.shape))

  def _heads(
    self, x: Float[Array, 'b n d'], norm: nnx.LayerNorm | None
  ) -> Float[Array, 'b h n k']:
    x = x.reshape(*x.shape[:-1], self.num_heads, -1)
    return jnp.swapaxes(x if norm is None else norm(x), 1, 2)


def attend(
  query: Float[Array, 'b h q k'],
  key: Float[Array, 'b h n k'],
  value: Float[Array, 'b h n k'],
) -> Float[Array, 'b h q k']:
  """Softmax attention, scaled by the root of the head's width, in float32.

  Heads come before tokens: on a CPU both products are then plain batched
  matmuls, which `jax.nn.dot_product_attention` does not give.
  """
  logits = jnp.einsum(
    'bhqk,bhnk->bhqn', query, key, preferred_element_type=jnp.float32
  )
  weights = jax.nn.softmax(logits * query.shape[-1] ** -0.5)
  return jnp.einsum('bhqn,bhnk->bhqk', weights.astype(value.dtype), value)


def layer_norm(
  config: config_lib.TransformerConfig,
  width: int,
  *,
  use_bias: bool = True,
  rngs: nnx.Rngs,
) -> nnx.LayerNorm:
  """Returns a LayerNorm of the model's types, epsilon 1e-6."""
  return nnx.LayerNorm(
    width,
    epsilon=1e-6,
    use_bias=use_bias,
    dtype=jnp.dtype(config.dtype),
    param_dtype=jnp.dtype(config.param_dtype),
    rngs=rngs,
  )


class Block(nnx.Module):
  """Pre-norm transformer block; its second half is an MLP or an MoE layer."""

  def __init__(
    self, config: config_lib.TransformerConfig, *, moe: bool, rngs: nnx.Rngs
  ):
    self.dropout, self.dtype = config.dropout, jnp.dtype(config.dtype)
    self.attention_norm = layer_norm(config, config.width, rngs=rngs)
    self.attention = Attention(config, qk_norm=config.qk_norm, rngs=rngs)
    self.mlp_norm = layer_norm(config, config.width, rngs=rngs)
    self.mlp = (
      mixtures.make_moe(config, rngs)
      if moe
      else mixtures.make_mlp(config, config.mlp_dim, rngs)
    )

  def __call__(
    self,
    x: Float[Array, 'b n d'],
    drop_path: Float[Array, ''] | float | None = None,
    key: Key = None,
    mask: Bool[Array, ' b'] | None = None,
  ) -> tuple[Float[Array, 'b n d'], dict]:
    """Returns the tokens and the MoE layer's `aux` (empty for an MLP).

    Args:
      x: tokens.
      drop_path: probability that an image skips a half of the block; None: 0.
      key: for dropout, drop path and routing noise; None: none of them.
      mask: False where an image only fills the batch up.
    """
    keys = [None] * 5 if key is None else list(jax.random.split(key, 5))
    y = self.attention_norm(x)
    y = sharding.gather(self.attention, self.dtype)(y, y)
    x = x + self._drop(y, drop_path, keys[0], keys[1])
    y, aux = self.mlp_norm(x), {}
    if isinstance(self.mlp, layer.MoE):
      if mask is not None:
        mask = jnp.broadcast_to(mask[:, None], x.shape[:2])
      y, aux = self.mlp(y, mask, key=keys[4])
    else:
      y = sharding.gather(self.mlp, self.dtype)(y)
    return x + self._drop(y, drop_path, keys[2], keys[3]), aux

  def _drop(self, y, drop_path, dropout_key, path_key):
    if self.dropout:
      y = dropout(y, self.dropout, dropout_key, y.shape)
    if drop_path is not None:
      y = dropout(y, drop_path, path_key, (y.shape[0], 1, 1))
    return y
