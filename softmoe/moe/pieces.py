"""Pieces: an example cut in order, each piece served by the one before it.

What a router with `segment` asks for: the tokens of a piece are routed as a
group, and the outputs of its slots go to the tokens of the next piece. So no
token depends on its own piece or a later one. The first piece gets nothing.

Of several documents in an example, a piece serves the one that its last token
belongs to, the only one that can go on: its slots hold no other's tokens, and
no other's tokens read them. A token that is padding is in no slot.

Axes: `b` examples, `n` tokens that are new, `t` tokens of a piece, `k` pieces,
`l` = k t places, `e` experts, `s` slots of one expert, `d` width.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from softmoe import sharding
from softmoe.errors import UserError
from softmoe.moe import routing

NOBODY = np.iinfo(np.int32).min  # the number of no document


class Cache(NamedTuple):
  """What further tokens need of those so far; those of a `scan` lead with it.

  Attributes:
    x: tokens of the piece that is not full yet; free places hold anything.
    mask: False where such a token is padding.
    segments: documents of these tokens, by number.
    length: how many there are; the same number for each example.
    reader: the document that reads `outputs`; NOBODY: none.
    outputs: of the slots of the piece before it.
  """

  x: Float[Array, '*i b t d']
  mask: Bool[Array, '*i b t']
  segments: Int[Array, '*i b t']
  length: Int[Array, '*i b']
  reader: Int[Array, '*i b']
  outputs: Float[Array, '*i b e s d_out']


def init_cache(x: jax.ShapeDtypeStruct, outputs: jax.ShapeDtypeStruct) -> Cache:
  """Returns the cache of examples without a token.

  Args:
    x: tokens of a piece (b, t, d), shape and type alone.
    outputs: of its slots (e, b, s, d_out).
  """
  b, t, _ = x.shape
  e, _, s, d_out = outputs.shape
  cache = Cache(
    x=jnp.zeros(x.shape, x.dtype),
    mask=jnp.zeros((b, t), bool),
    segments=jnp.zeros((b, t), jnp.int32),
    length=jnp.zeros((b,), jnp.int32),
    reader=jnp.full((b,), NOBODY, jnp.int32),
    outputs=jnp.zeros((b, e, s, d_out), outputs.dtype),
  )
  return jax.tree.map(sharding.split_examples, cache)


class Cut(NamedTuple):
  """Tokens in pieces: those of the cache, then the new ones, then none.

  Attributes:
    x: tokens.
    mask: False where there is no token, or padding.
    segments: documents, by number.
    readers: of the outputs that come before each piece, and after the last.
    size: of a piece.
    start: place of the first new token.
    num_new: new tokens of each example.
  """

  x: Float[Array, 'b l d']
  mask: Bool[Array, 'b l']
  segments: Int[Array, 'b l']
  readers: Int[Array, 'b _']
  size: int
  start: Int[Array, ''] | int
  num_new: int

  @property
  def num(self) -> int:
    """Pieces of an example."""
    return self.x.shape[1] // self.size

  @property
  def full(self) -> Int[Array, ''] | int:
    """How many of them are full."""
    return (self.start + self.num_new) // self.size

  def writes(self) -> Bool[Array, 'b l']:
    """Tells which tokens the slots of their piece may hold."""
    return self.mask & (self.segments == self._by_token(self.readers[:, 1:]))

  def reads(self) -> Bool[Array, 'b l']:
    """Tells which tokens read the outputs of the piece before theirs."""
    return self.segments == self._by_token(self.readers[:, :-1])

  def is_new(self) -> Bool[Array, 'b l']:
    """Tells which tokens are new and no padding."""
    return self.mask & (jnp.arange(self.x.shape[1]) >= self.start)[None]

  def by_piece(self, v: Shaped[Array, 'b l *rest']) -> Shaped[Array, 'g t *r']:
    """Returns the pieces as examples of their own, g = b k."""
    return v.reshape(-1, self.size, *v.shape[2:])

  def new(self, v: Shaped[Array, 'g t *rest']) -> Shaped[Array, 'b n *r']:
    """Returns what pieces have of the new tokens."""
    v = v.reshape(len(self.x), -1, *v.shape[2:])
    return jax.lax.dynamic_slice_in_dim(v, self.start, self.num_new, 1)

  def limit(self, routed: routing.Slots | routing.Assignment) -> routing.Slots:
    """Returns the routing of each piece, without what it must not read.

    Raises:
      UserError: the router gives no slots.
    """
    if not isinstance(routed, routing.Slots):
      expected = 'Slots of a router with `segment`'
      raise UserError('router', type(routed).__name__, expected)
    reads = self.by_piece(self.reads())[..., None, None]
    return routed._replace(combine=jnp.where(reads, routed.combine, 0))

  def relay(self, cache: Cache | None) -> 'Relay':
    """Returns what hands outputs on, from those that the cache has."""
    return Relay(self.num, self.full, None if cache is None else cache.outputs)

  def grown(self, outputs: Float[Array, 'b e s d_out']) -> Cache:
    """Returns the cache for what comes after, given its outputs."""
    start = self.full * self.size
    rest = lambda v: jax.lax.dynamic_slice_in_dim(v, start, self.size, 1)
    return Cache(
      x=rest(self.x),
      mask=rest(self.mask),
      segments=rest(self.segments),
      length=jnp.full(
        len(self.x), (self.start + self.num_new) % self.size, jnp.int32
      ),
      reader=_pick(self.readers, self.full, 1),
      outputs=outputs,
    )

  def _by_token(self, v: Int[Array, 'b k']) -> Int[Array, 'b l']:
    return jnp.repeat(v, self.size, axis=1)


def cut(
  x: Float[Array, 'b n d'],
  mask: Bool[Array, 'b n'] | None,
  segments: Int[Array, 'b n'] | None,
  size: int,
  cache: Cache | None = None,
) -> Cut:
  """Cuts the tokens of each example into pieces; the last is filled up.

  Args:
    x: tokens.
    mask: False where a token is padding.
    segments: documents by number; None: there is one.
    size: of a piece.
    cache: of the tokens before.
  """
  num_new, start, before, held = x.shape[1], 0, 0, (None,) * 3
  if cache is not None:
    start, before, held = cache.length[0], size - 1, cache[:3]
  if mask is None:
    mask = jnp.ones(x.shape[:2], bool)
  if segments is None:
    segments = jnp.zeros(x.shape[:2], jnp.int32)
  total = size * -(-(before + num_new) // size)
  x, mask, segments = (
    _place(old, new, start, total)
    for old, new in zip(held, (x, mask, segments), strict=True)
  )
  mask &= (jnp.arange(total) < start + num_new)[None]
  last = _last_documents(mask, segments, size)
  first = jnp.full_like(last[:, 0], NOBODY) if cache is None else cache.reader
  readers = jnp.concatenate([first[:, None], last], axis=1)
  return Cut(x, mask, segments, readers, size, start, num_new)


def _place(
  held: Shaped[Array, 'b t *rest'] | None,
  new: Shaped[Array, 'b n *rest'],
  start: Int[Array, ''] | int,
  total: int,
) -> Shaped[Array, 'b l *rest']:
  """Returns `total` places: of the cache, the new from `start` on, zeros."""

  def pad(v):
    rest = ((0, 0),) * (v.ndim - 2)
    return jnp.pad(v, ((0, 0), (0, total - v.shape[1]), *rest))

  if held is None:
    return pad(new)
  new = new.astype(held.dtype)
  return jax.lax.dynamic_update_slice_in_dim(pad(held), new, start, 1)


def _last_documents(
  mask: Bool[Array, 'b l'], segments: Int[Array, 'b l'], size: int
) -> Int[Array, 'b k']:
  """Returns the document of each piece's last token that is not padding."""
  mask, segments = (v.reshape(len(v), -1, size) for v in (mask, segments))
  last = jnp.max(jnp.where(mask, jnp.arange(size), -1), axis=2, keepdims=True)
  document = jnp.take_along_axis(segments, jnp.maximum(last, 0), axis=2)
  return jnp.where(last >= 0, document, NOBODY)[..., 0]


class Relay(NamedTuple):
  """Hands the outputs of each piece's slots to the next piece.

  Attributes:
    num: pieces of an example.
    full: how many of them are full.
    first: what the first piece gets; None: zeros, and no one asks for what the
      last one leaves.
  """

  num: int
  full: Int[Array, ''] | int
  first: Float[Array, 'b e s d_out'] | None = None

  @property
  def runs(self) -> Bool[Array, ''] | bool:
    """Whether experts run: else no piece is full, and no one gets outputs."""
    return self.first is None or self.full > 0

  def run(
    self,
    work: Callable[[], Float[Array, 'e g s d_out']],
    mine: Callable[..., Array],
  ) -> tuple[Float[Array, 'e g s d_out'], Float[Array, 'b e s d_out'] | None]:
    """Returns the outputs that each piece gets, and those after the full ones.

    Args:
      work: returns those of each piece's own slots; not called where there is
        a cache and no piece is full.
      mine: of an array along an axis, what this device's experts have.
    """
    if self.first is None:
      outputs = work()
      first = jnp.zeros_like(outputs[:, :: self.num])
    else:
      first = jnp.moveaxis(mine(self.first, 1), 1, 0)
      outputs = jax.lax.cond(
        self.runs,
        lambda: work().astype(first.dtype),
        lambda: jnp.repeat(first, self.num, axis=1),
      )
    e, g, s, d = outputs.shape
    by_piece = outputs.reshape(e, -1, self.num, s, d)
    chain = jnp.concatenate([first[:, :, None], by_piece], axis=2)
    handed = chain[:, :, :-1].reshape(e, g, s, d)
    if self.first is None:
      return handed, None
    return handed, jnp.moveaxis(_pick(chain, self.full, 2), 0, 1)


def _pick(v: Array, i: Int[Array, ''] | int, along: int) -> Array:
  return jax.lax.dynamic_index_in_dim(v, i, along, keepdims=False)
