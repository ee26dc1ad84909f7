"""Which tokens each token may read, as boolean arrays; None: all.

Axes are those of `attention`.
"""

from jax import numpy as jnp
from jaxtyping import Array, Bool, Int

# Document of the tokens that nobody may read.
HIDDEN = jnp.iinfo(jnp.int32).min


def both(
  a: Bool[Array, '#b 1 #q #n'] | None, b: Bool[Array, '#b 1 #q #n'] | None
) -> Bool[Array, '#b 1 #q #n'] | None:
  """Returns what both allow."""
  return b if a is None else a if b is None else a & b


def same_segment(
  segments: Int[Array, '#b q'] | None,
) -> Bool[Array, '#b 1 q q'] | None:
  """Returns the tokens of the same document."""
  if segments is None:
    return None
  return segments[:, None, :, None] == segments[:, None, None]


def documents(
  b: int,
  q: int,
  n: int,
  mask: Bool[Array, '#b n'] | None,
  segments: Int[Array, '#b q'] | None,
) -> tuple[Int[Array, 'b q'], Int[Array, 'b n']]:
  """Returns of the tokens that read, and of those that are read, a document.

  A token reads those of the same number.
  """
  reads = jnp.zeros((1, q), jnp.int32) if segments is None else segments
  is_read = jnp.zeros((1, n), jnp.int32) if segments is None else segments
  if mask is not None:
    is_read = jnp.where(mask, is_read, HIDDEN)
  fill = lambda ids, n: jnp.broadcast_to(ids.astype(jnp.int32), (b, n))
  return fill(reads, q), fill(is_read, n)


def triangle(q: int, n: int) -> Bool[Array, '1 1 q n']:
  """Returns no later token."""
  return (jnp.arange(q)[:, None] >= jnp.arange(n)[None])[None, None]


def reads_any(
  allowed: Bool[Array, '#b 1 #q n'], q: int, causal: bool
) -> Bool[Array, '#b 1 #q 1']:
  """Tells who of `q` tokens may read any.

  That is whose first allowed token is no later one. A triangle would be an
  array of all pairs, which a compiler does not always see through.
  """
  n = allowed.shape[3]
  place = jnp.arange(n)[None, None, None]
  first = jnp.min(jnp.where(allowed, place, n), axis=3, keepdims=True)
  last = jnp.arange(q)[None, None, :, None]
  return first <= (last if causal else n - 1)
