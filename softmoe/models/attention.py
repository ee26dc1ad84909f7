"""Multi-head attention: who sees whom, computed how, and from a cache.

Axes: `b` examples, `q` queries, `n` tokens that are read, `d` width, `h` heads,
`k` width of a head. An axis of size 1 is the same for all.
"""

import functools
from typing import NamedTuple

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from softmoe import sharding
from softmoe.errors import UserError
from softmoe.models import config as config_lib
from softmoe.models import (
  flash_gpu,
  flash_tpu,
  norms,
  plain,
  rotary,
  visibility,
)
from softmoe.moe import dot

IMPLEMENTATIONS = ('plain', 'xla', 'cudnn', 'pallas')


class Cache(NamedTuple):
  """Keys and values of the tokens so far; those of a `scan` lead with its axis.

  Attributes:
    keys: normalised and rotated, with room for n tokens.
    values: of the same tokens.
    length: how many there are; the rest is not looked at.
  """

  keys: Float[Array, '*s b h n k']
  values: Float[Array, '*s b h n k']
  length: Int[Array, '*s']


def init_cache(
  config: config_lib.TransformerConfig, batch: int, length: int
) -> Cache:
  """Returns an empty cache; see `sharding.split_examples`.

  Args:
    config: of the attention.
    batch: number of examples.
    length: of the longest sequence. More tokens than that cannot be told from
      fewer in compiled code: they would overwrite the last.
  """
  heads = config.num_heads
  shape = (batch, heads, length, config.width // heads)
  zeros = sharding.split_examples(jnp.zeros(shape, config.dtype))
  return Cache(zeros, zeros, jnp.zeros((), jnp.int32))


class Attention(nnx.Module):
  """Multi-head attention, with optional LayerNorm of queries and keys."""

  def __init__(
    self, config: config_lib.TransformerConfig, *, qk_norm: bool, rngs: nnx.Rngs
  ):
    width, self.num_heads = config.width, config.num_heads
    self.implementation = config.attention
    self.rotary = config.positions == 'rotary'
    linear = lambda: nnx.Linear(
      width,
      width,
      kernel_init=nnx.initializers.xavier_uniform(),
      dtype=jnp.dtype(config.dtype),
      param_dtype=jnp.dtype(config.param_dtype),
      dot_general=dot.dot_general,
      rngs=rngs,
    )
    self.query, self.key, self.value = linear(), linear(), linear()
    self.out = linear()
    norm = lambda: norms.layer_norm(
      config, width // self.num_heads, use_bias=False, rngs=rngs
    )
    self.query_norm = norm() if qk_norm else None
    self.key_norm = norm() if qk_norm else None

  @jax.named_scope('attention')
  def __call__(
    self,
    x: Float[Array, 'b q d'],
    memory: Float[Array, 'b n d'] | None = None,
    *,
    mask: Bool[Array, '#b n'] | None = None,
    causal: bool = False,
    segments: Int[Array, '#b q'] | None = None,
    positions: Int[Array, '#b q'] | None = None,
    cache: Cache | None = None,
    read: Cache | None = None,
  ) -> tuple[Float[Array, 'b q d'], Cache | None]:
    """Returns what the tokens `x` read, and the cache with them in it.

    Args:
      x: the queries.
      memory: what is read; None: `x` itself, and all that the cache holds.
      mask: False where a token must not be read. With a cache, one entry for
        each of its places, free ones too.
      causal: no token reads a later one.
      segments: documents by number; no token reads another document's.
      positions: of each token of `x`, for rotary embedding; None: they go on
        from the cache. What reads a memory is not rotated.
      cache: of the tokens before `x`.
      read: what `read` made of the memory, in its place.

    Raises:
      UserError: arguments that have no meaning beside one another.
    """
    _check(memory, causal, segments, cache, x.shape[1])
    query = self._heads(self.query(x), self.query_norm)
    own = memory is None and read is None
    if read is None:
      read = self.read(x if memory is None else memory)
    key, value = read.keys, read.values
    if self.rotary and own:
      if positions is None:
        positions = jnp.arange(x.shape[1])[None]
        positions += 0 if cache is None else cache.length
      query = rotary.rotate(query, positions)
      key = rotary.rotate(key, positions)
    visible = None if mask is None else mask[:, None, None]
    if cache is not None:
      visible = visibility.both(visible, _so_far(cache, x.shape[1], causal))
      cache, causal = _extend(cache, key, value), False
      key, value = cache.keys, cache.values
    y = attend(
      query, key, value, visible, segments, causal, self.implementation
    )
    y = jnp.swapaxes(y, 1, 2)  # b q h k
    return self.out(y.reshape(x.shape)), cache

  def read(self, memory: Float[Array, 'b n d']) -> Cache:
    """Returns keys and values of a memory, which many calls may read."""
    keys = self._heads(self.key(memory), self.key_norm)
    values = self._heads(self.value(memory), None)
    return Cache(keys, values, jnp.int32(memory.shape[1]))

  def _heads(
    self, x: Float[Array, 'b n d'], norm: nnx.LayerNorm | None
  ) -> Float[Array, 'b h n k']:
    x = x.reshape(*x.shape[:-1], self.num_heads, -1)
    return jnp.swapaxes(x if norm is None else norm(x), 1, 2)


def choose(name: str, platform: str) -> str:
  """Returns the implementation of a name, if a platform has it.

  Args:
    name: one of IMPLEMENTATIONS. 'plain' is `attend`'s own, 'xla' and 'cudnn'
      are those of `jax.nn.dot_product_attention`, 'pallas' is `flash_tpu` or
      `flash_gpu`, which make no squares of logits. By the TPU's compiler 'xla'
      moves a few percent more bytes than 'plain', and 'pallas' saves memory and
      traffic from about a thousand tokens on: below that its padding and its
      row sums, kept 128-fold, are more than a square. By the GPU's it saves
      both at any length.
    platform: see `sharding.platform`.

  Raises:
    UserError: there is none of this name, or not here.
  """
  field = 'config.model.attention'
  if name not in IMPLEMENTATIONS:
    raise UserError(field, name, f'one of {IMPLEMENTATIONS}')
  if not is_there(name, platform):
    where = 'on a CPU' if name == 'pallas' else 'without a GPU'
    raise UserError(field, name, f"'plain' or 'xla' {where}")
  return name


def is_there(name: str, platform: str) -> bool:
  """Tells whether a platform has an implementation; see `choose`."""
  if name == 'cudnn':
    return jax.default_backend() == 'gpu' and platform not in ('cpu', 'tpu')
  return name != 'pallas' or platform != 'cpu'


def attend(
  query: Float[Array, 'b h q k'],
  key: Float[Array, 'b h n k'],
  value: Float[Array, 'b h n k'],
  visible: Bool[Array, '#b 1 #q n'] | None = None,
  segments: Int[Array, '#b q'] | None = None,
  causal: bool = False,
  implementation: str = 'plain',
) -> Float[Array, 'b h q k']:
  """Softmax attention, scaled by the root of the head's width, in float32.

  A token that reads none gets zeros.

  Args:
    query: of each token that reads.
    key: of each token that is read.
    value: of each token that is read.
    visible: which tokens each may read.
    segments: documents by number; no token reads another document's.
    causal: token i reads no token after i.
    implementation: see `choose`. What 'pallas' does not do is left to 'xla': a
      `visible` that differs by query, as some more tokens read a cache, and a
      lone query, which makes no square of logits.
  """
  name = choose(implementation, sharding.platform())
  differs = visible is not None and visible.shape[2] > 1
  if name == 'pallas' and (differs or query.shape[2] == 1):
    name = 'xla'
  allowed = visibility.both(visible, visibility.same_segment(segments))
  if name == 'plain':
    square = query.shape[2], key.shape[2]
    earlier = visibility.triangle(*square) if causal else None
    y = plain.attend(query, key, value, visibility.both(allowed, earlier))
  elif name == 'pallas':
    mask = None if visible is None else visible[:, 0, 0]
    flash = flash_tpu if sharding.platform() == 'tpu' else flash_gpu
    call = functools.partial(flash.attend, causal=causal)
    y = _by_example(call, query, key, value, mask, segments)
  else:
    y = _fused(query, key, value, allowed, causal, name)
  if visible is None or allowed is None:  # each reads itself at least
    return y
  # The softmax of a row that sees nothing is a mean of what it must not see.
  return jnp.where(visibility.reads_any(allowed, query.shape[2], causal), y, 0)


def _fused(query, key, value, visible, causal, name):
  """Attends by JAX, whose function has tokens before heads."""

  def call(query, key, value, visible):
    tokens_first = (jnp.swapaxes(v, 1, 2) for v in (query, key, value))
    y = jax.nn.dot_product_attention(
      *tokens_first, mask=visible, is_causal=causal, implementation=name
    )
    return jnp.swapaxes(y, 1, 2)

  if visible is not None:
    shape = (*visible.shape[:2], query.shape[2], key.shape[2])
    visible = jnp.broadcast_to(visible, shape)
  if name == 'cudnn':
    return _by_example(call, query, key, value, visible)
  return call(query, key, value, visible)


def _by_example(call, query, *others):
  """Calls on every device with its own examples: a kernel is local."""
  if not sharding.is_explicit('data'):
    return call(query, *others)
  split = jax.P(jax.typeof(query).sharding.spec[0])
  place = lambda v: split if v.shape[0] == query.shape[0] else jax.P()
  specs = (split, *jax.tree.map(place, others))
  call = jax.shard_map(call, in_specs=specs, out_specs=split, check_vma=False)
  return call(query, *map(jax.reshard, others, specs[1:]))


def _check(memory, causal, segments, cache, num_tokens):
  if memory is not None:
    for name, given in (('segments', segments), ('cache', cache)):
      if given is not None:
        raise UserError(name, 'one', 'None beside a memory')
    if causal:
      raise UserError('causal', causal, 'False beside a memory')
  if cache is not None and segments is not None:
    raise UserError('segments', 'some', 'None beside a cache')
  if cache is not None and num_tokens > cache.keys.shape[2]:
    expected = f'at most the {cache.keys.shape[2]} of the cache'
    raise UserError('x', f'{num_tokens} tokens', expected)


def _so_far(cache: Cache, num: int, causal: bool) -> Bool[Array, '1 1 #q n']:
  """Tells what each of `num` further tokens may read of the cache."""
  last = cache.length + (jnp.arange(num) if causal else jnp.array([num - 1]))
  place = jnp.arange(cache.keys.shape[2])
  return (place[None] <= last[:, None])[None, None]


def _extend(cache: Cache, key, value) -> Cache:
  write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(
    old, new.astype(old.dtype), cache.length, axis=2
  )
  length = cache.length + key.shape[2]
  return Cache(write(cache.keys, key), write(cache.values, value), length)
