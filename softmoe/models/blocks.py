"""Parts that transformers share: dropout, the pre-norm block.

Axes: `b` examples, `n` tokens, `d` width.

Randomness comes in as a key; no key means evaluation, without dropout.
"""

from typing import Any, NamedTuple

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from softmoe import sharding
from softmoe.models import attention, mixtures, norms
from softmoe.models import config as config_lib
from softmoe.moe import layer, pieces

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


class Cache(NamedTuple):
  """What a block needs of the tokens so far.

  Attributes:
    attention: their keys and values.
    moe: of the MoE layer; None where it needs none, and for an MLP.
  """

  attention: attention.Cache
  moe: pieces.Cache | None = None


def init_cache(
  config: config_lib.TransformerConfig, batch: int, length: int, *, moe: bool
) -> Cache:
  """Returns an empty cache for a block; see `attention.init_cache`."""
  own = attention.init_cache(config, batch, length)
  if not moe:
    return Cache(own)
  mixture = jax.eval_shape(lambda: mixtures.make_moe(config, nnx.Rngs(0)))
  return Cache(own, mixture.init_cache(batch, jnp.dtype(config.dtype)))


class Block(nnx.Module):
  """Pre-norm transformer block; its second half is an MLP or an MoE layer."""

  def __init__(
    self, config: config_lib.TransformerConfig, *, moe: bool, rngs: nnx.Rngs
  ):
    self.dropout, self.dtype = config.dropout, jnp.dtype(config.dtype)
    self.attention_norm = norms.layer_norm(config, config.width, rngs=rngs)
    self.attention = attention.Attention(
      config, qk_norm=config.qk_norm, rngs=rngs
    )
    self.mlp_norm = norms.layer_norm(config, config.width, rngs=rngs)
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
    cache: Cache | None = None,
    *,
    mask: Bool[Array, 'b n'] | None = None,
    token_ids: Int[Array, 'b n'] | None = None,
    router_options: dict[str, Any] | None = None,
    attention_mask: Bool[Array, '#b m'] | None = None,
    causal: bool = False,
    segments: Int[Array, '#b n'] | None = None,
    positions: Int[Array, '#b n'] | None = None,
  ) -> tuple[Float[Array, 'b n d'], dict[str, Any], Cache | None]:
    """Returns the tokens, the MoE layer's `aux` (empty for an MLP), the cache.

    Args:
      x: tokens.
      drop_path: probability that an example skips a half of the block; None: 0.
      key: for dropout, drop path and routing noise; None: none of them.
      cache: of the tokens before `x`.
      mask: False where a token only fills up: it reaches no expert.
      token_ids: places in the vocabulary, for a router that looks at them.
      router_options: further arguments of the router's call, by name.
      attention_mask: False where a token must not be read; this and the rest
        are as in `attention.Attention`.
      causal: no token reads a later one.
      segments: documents, by number; also for the MoE layer.
      positions: of the tokens.
    """
    keys = [None] * 5 if key is None else list(jax.random.split(key, 5))
    y, own = sharding.gather(self.attention, self.dtype)(
      self.attention_norm(x),
      mask=attention_mask,
      causal=causal,
      segments=segments,
      positions=positions,
      cache=None if cache is None else cache.attention,
    )
    x = x + self._drop(y, drop_path, keys[0], keys[1])
    y, aux = self.mlp_norm(x), {}
    if isinstance(self.mlp, layer.MoE):
      y, aux = self.mlp(
        y,
        mask,
        key=keys[4],
        token_ids=token_ids,
        segments=_for_each(segments, y),
        cache=None if cache is None else cache.moe,
        **router_options or {},
      )
    else:
      y = sharding.gather(self.mlp, self.dtype)(y)
    cache = None if own is None else Cache(own, aux.pop('cache', None))
    return x + self._drop(y, drop_path, keys[2], keys[3]), aux, cache

  def _drop(self, y, drop_path, dropout_key, path_key):
    if self.dropout:
      y = dropout(y, self.dropout, dropout_key, y.shape)
    if drop_path is not None:
      y = dropout(y, drop_path, path_key, (y.shape[0], 1, 1))
    return y


def _for_each(
  segments: Int[Array, '#b n'] | None, x: Float[Array, 'b n d']
) -> Int[Array, 'b n'] | None:
  return None if segments is None else jnp.broadcast_to(segments, x.shape[:2])
