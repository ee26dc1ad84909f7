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
  place = _place(x, shape)
  keep = jax.random.bernoulli(key, 1 - rate, shape, out_sharding=place)
  return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def _place(x: Array, shape: tuple[int, ...]) -> jax.P | None:
  """Returns where a mask is, or every device would draw that of all."""
  if not sharding.is_explicit('data'):
    return None
  spec = jax.typeof(x).sharding.spec
  split = zip(spec, shape, strict=True)
  return jax.P(*(None if size == 1 else axes for axes, size in split))


class Cache(NamedTuple):
  """What a block needs of the tokens so far.

  Attributes:
    attention: their keys and values.
    moe: of the MoE layer; None where it needs none, and for an MLP.
    memory: keys and values of what another stack made; None: there is none.
  """

  attention: attention.Cache
  moe: pieces.Cache | None = None
  memory: attention.Cache | None = None


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
  """Transformer block; its last part is an MLP or an MoE layer.

  Parts are normalised before, x + f(norm(x)), or after, norm(x + f(x)).
  """

  def __init__(
    self,
    config: config_lib.TransformerConfig,
    *,
    moe: bool,
    cross: bool = False,
    rngs: nnx.Rngs,
  ):
    """Creates the parameters.

    Args:
      config: of the stack.
      moe: whether the last part is an MoE layer.
      cross: whether there is a part that reads a memory.
      rngs: source of the parameters' keys.
    """
    self.dropout, self.dtype = config.dropout, jnp.dtype(config.dtype)
    self.post_norm = config.norm == 'post'
    self.attention_norm = norms.layer_norm(config, config.width, rngs=rngs)
    self.attention = attention.Attention(
      config, qk_norm=config.qk_norm, rngs=rngs
    )
    read = lambda: attention.Attention(
      config, qk_norm=config.qk_norm, rngs=rngs
    )
    self.cross_norm = (
      norms.layer_norm(config, config.width, rngs=rngs) if cross else None
    )
    self.cross = read() if cross else None
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
    memory: Float[Array, 'b k d'] | None = None,
    memory_mask: Bool[Array, '#b k'] | None = None,
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
      memory: what another stack made, if the cache has nothing of it.
      memory_mask: False where it must not be read.
    """
    keys = [None] * 5 if key is None else list(jax.random.split(key, 5))
    y, own = sharding.gather(self.attention, self.dtype)(
      self._before(self.attention_norm, x),
      mask=attention_mask,
      causal=causal,
      segments=segments,
      positions=positions,
      cache=None if cache is None else cache.attention,
    )
    y = self._drop(y, drop_path, keys[0], keys[1])
    x = self._after(self.attention_norm, x + y)
    read = None if cache is None else cache.memory
    if self.cross is not None:
      y = self._cross(x, memory, memory_mask, read)
      new = None if key is None else jax.random.fold_in(key, len(keys))
      y = self._drop(y, drop_path, *_split(new))
      x = self._after(self.cross_norm, x + y)
    y, aux = self._before(self.mlp_norm, x), {}
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
      with jax.named_scope('mlp'):
        y = sharding.gather(self.mlp, self.dtype)(y)
    moe_cache = aux.pop('cache', None)
    cache = None if own is None else Cache(own, moe_cache, read)
    y = self._drop(y, drop_path, keys[2], keys[3])
    return self._after(self.mlp_norm, x + y), aux, cache

  def read(self, memory: Float[Array, 'b k d']) -> attention.Cache:
    """Returns what the block reads of a memory; see `Cache.memory`."""
    return sharding.gather(self.cross, self.dtype).read(memory)

  def _cross(self, x, memory, mask, read):
    cross = sharding.gather(self.cross, self.dtype)
    memory = None if read is not None else memory
    x = self._before(self.cross_norm, x)
    return cross(x, memory, mask=mask, read=read)[0]

  def _before(self, norm, x):
    return x if self.post_norm else norm(x)

  def _after(self, norm, x):
    return norm(x) if self.post_norm else x

  def _drop(self, y, drop_path, dropout_key, path_key):
    if self.dropout:
      y = dropout(y, self.dropout, dropout_key, y.shape)
    if drop_path is not None:
      y = dropout(y, drop_path, path_key, (y.shape[0], 1, 1))
    return y


def _split(key: Key) -> list[Any]:
  return [None, None] if key is None else list(jax.random.split(key))


def _for_each(
  segments: Int[Array, '#b n'] | None, x: Float[Array, 'b n d']
) -> Int[Array, 'b n'] | None:
  return None if segments is None else jnp.broadcast_to(segments, x.shape[:2])
