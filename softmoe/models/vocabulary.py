"""Tokens to vectors and back: embedding, head, and the loss over a vocabulary.

Axes: `b` examples, `n` tokens, `d` width, `v` vocabulary, `t` tokens of a
device.
"""

import functools
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from softmoe import sharding
from softmoe.errors import UserError
from softmoe.models.config import DecoderConfig, TextConfig
from softmoe.moe import dot
from softmoe.moe import part as part_lib

_STD = 0.02  # of all at the start, as in GPT-2


class Losses(NamedTuple):
  """What is lost at each token, in float32.

  Attributes:
    cross_entropy: in nats, labels as they are.
    smoothed: the same with smoothed labels, which is what is trained.
    correct: whether the target has the largest logit.
  """

  cross_entropy: Float[Array, 'b n']
  smoothed: Float[Array, 'b n']
  correct: Bool[Array, 'b n']


class Embedding(nnx.Module):
  """A vector for each token.

  Attributes:
    embedding: (v, d), normal(0.02).
  """

  def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
    self.dtype = jnp.dtype(config.dtype)
    self.embedding = _draw(config, rngs)

  def embed(self, tokens: Int[Array, 'b n']) -> Float[Array, 'b n d']:
    """Returns the vector of each token."""
    return rows(self.embedding[...], tokens, self.dtype)


class Vocabulary(Embedding):
  """An embedding, and a head without bias that may be the same matrix.

  Attributes:
    head: (v, d), of the embedding's start; None where it is the embedding.
  """

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    super().__init__(config, rngs=rngs)
    self.chunk = config.loss_chunk
    self.head = None if config.tied else _draw(config, rngs)

  def logits(self, x: Float[Array, 'b n d']) -> Float[Array, 'b n v']:
    """Returns the float32 logits of the next token."""
    head = sharding.gather(self._head(), self.dtype)
    x, head = x.astype(self.dtype), head.astype(self.dtype)
    return jnp.einsum(
      '...d,vd->...v', x, head, preferred_element_type=jnp.float32
    )

  def losses(
    self,
    x: Float[Array, 'b n d'],
    targets: Int[Array, 'b n'],
    smoothing: float = 0.0,
  ) -> Losses:
    """Returns the loss of each token.

    On every device logits exist for `DecoderConfig.loss_chunk` tokens at a
    time, and the backward pass computes them again.

    Args:
      x: what the head sees.
      targets: the tokens that are right.
      smoothing: share of each label that is spread over the vocabulary.
    """

    def local(part: part_lib.Part, head: Array, tokens: Any) -> Any:
      x, targets = tokens
      flat = x.reshape(-1, x.shape[-1]), targets.reshape(-1)
      found = self._in_chunks(head, smoothing, *flat)
      return jax.tree.map(
        lambda v: part.merge(v.reshape(targets.shape)), found
      ), ()

    modules = (self._head(),)
    found, _ = part_lib.run(local, modules, (self.dtype,), (x, targets))
    return jax.tree.map(lambda v: sharding.place_like(v, targets), found)

  def _head(self) -> Array:
    matrix = self.embedding if self.head is None else self.head
    return matrix[...]

  def _in_chunks(
    self,
    head: Float[Array, 'v d'],
    smoothing: float,
    x: Float[Array, 't d'],
    targets: Int[Array, ' t'],
  ) -> Losses:
    # So that its gradient too is added up as (d, v): see `dot.transposed`.
    columns = dot.transposed(head)
    losses = functools.partial(_losses, columns, self.dtype, smoothing)
    size = len(targets)
    if not 0 < self.chunk < size:
      return losses(x, targets)
    fill = -size % self.chunk

    def cut(v: Array) -> Array:
      v = jnp.pad(v, ((0, fill), *((0, 0),) * (v.ndim - 1)))
      return v.reshape(-1, self.chunk, *v.shape[1:])

    one = jax.checkpoint(lambda part: losses(*part))
    found = jax.lax.map(one, (cut(x), cut(targets)))
    return jax.tree.map(lambda v: v.reshape(-1)[:size], found)


class Positions(nnx.Module):
  """Learned positions, or none where the config has others.

  Attributes:
    table: (length, d), normal(0.02); None: there are none.
  """

  def __init__(self, config: TextConfig, length: int, *, rngs: nnx.Rngs):
    learned, self.length = config.positions == 'learned', length
    shape, dtype = (length, config.width), jnp.dtype(config.param_dtype)
    draw = lambda: _STD * jax.random.normal(rngs.params(), shape, dtype)
    self.table = nnx.Param(draw()) if learned else None

  def __call__(
    self,
    x: Float[Array, 'b n d'],
    places: Int[Array, '#b n'] | None = None,
    start: Int[Array, ''] | int = 0,
  ) -> Float[Array, 'b n d']:
    """Returns the tokens with their positions added.

    Args:
      x: tokens.
      places: position of each, below `length`; None: from `start` on.
      start: of all examples.
    """
    if self.table is None:
      return x
    if places is None:
      places = start + jnp.arange(x.shape[1])[None]
    return x + rows(self.table[...], places, x.dtype)

  def check(self, length: int) -> None:
    """Raises a UserError if there are not so many positions."""
    if self.table is not None and length > self.length:
      expected = f'at most {self.length}, the positions that were learned'
      raise UserError('length', length, expected)


def rows(
  matrix: Float[Array, 'v d'], indices: Int[Array, 'b n'], dtype: Any
) -> Float[Array, 'b n d']:
  """Returns rows of a matrix, which may be split over `fsdp`, in `dtype`."""

  def look_up(part: part_lib.Part, matrix: Array, indices: Array) -> Any:
    return part.merge(matrix.astype(dtype)[indices]), ()

  found, _ = part_lib.run(look_up, (matrix,), (dtype,), indices)
  return sharding.place_like(found, indices)


def _draw(config: TextConfig, rngs: nnx.Rngs) -> nnx.Param:
  """Returns a vector for each token, normal(0.02)."""
  shape, dtype = (config.vocab_size, config.width), config.param_dtype
  normal = jax.random.normal(rngs.params(), shape, jnp.dtype(dtype))
  return nnx.Param(_STD * normal)


def _losses(
  head: Float[Array, 'd v'],
  dtype: Any,
  smoothing: float,
  x: Float[Array, 't d'],
  targets: Int[Array, ' t'],
) -> Losses:
  x, head = x.astype(dtype), head.astype(dtype)
  logits = dot.multiply(x, head, preferred_element_type=jnp.float32)
  log_total = jax.nn.logsumexp(logits, axis=-1)
  right = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
  smoothed = cross_entropy = log_total - right
  if smoothing:
    spread = log_total - jnp.mean(logits, axis=-1)
    smoothed = (1 - smoothing) * cross_entropy + smoothing * spread
  return Losses(cross_entropy, smoothed, _first_largest(logits) == targets)


def _first_largest(logits: Float[Array, 't v']) -> Int[Array, ' t']:
  """Returns what `jnp.argmax` does of numbers, which is slow on a CPU."""
  num = logits.shape[-1]
  is_largest = logits == jnp.max(logits, axis=-1, keepdims=True)
  return jnp.min(jnp.where(is_largest, jnp.arange(num), num), axis=-1)
