"""Attention as GPU kernels that write no square of logits.

Dao et al., 2022, https://arxiv.org/abs/2205.14135: logits are made a tile at a
time, forward with a running maximum and sum, and again for the gradients, of
queries by one kernel and of keys and values by another. Tokens need no padding:
a tile that reaches past the last one is masked. Axes are those of `attention`;
kernels take heads side by side, `d`, as the layers before and after them do.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, Int

from softmoe import sharding
from softmoe.models import visibility
from softmoe.moe.execution import tiles

ROWS = 64  # queries of a tile
COLUMNS = 32  # tokens of a tile that are read: 196 fill up seven
_LEAST = -1e30  # logit of what is not read; no row of them is all infinite


class _Heads(NamedTuple):
  """What a kernel knows before it runs.

  Attributes:
    number: of heads.
    width: of a head.
    causal: whether no token reads a later one.
  """

  number: int
  width: int
  causal: bool

  @property
  def scale(self) -> float:
    """What logits are multiplied by."""
    return self.width**-0.5


def attend(
  query: Float[Array, 'b h q k'],
  key: Float[Array, 'b h n k'],
  value: Float[Array, 'b h n k'],
  mask: Bool[Array, '#b n'] | None,
  segments: Int[Array, '#b q'] | None,
  causal: bool,
) -> Float[Array, 'b h q k']:
  """Returns softmax attention; of a query that sees nothing, anything finite.

  Args:
    query: of each token that reads.
    key: of each token that is read.
    value: of each token that is read.
    mask: False where a token must not be read.
    segments: documents by number, any but the least of int32; for q = n.
    causal: no token reads a later one; for q = n.
  """
  b, h, q, k = query.shape
  ids = visibility.documents(b, q, key.shape[2], mask, segments)
  merge = lambda x: jnp.swapaxes(x, 1, 2).reshape(b, x.shape[2], h * k)
  heads = _Heads(h, k, causal)
  y = _attend(heads, merge(query), merge(key), merge(value), *ids)
  return jnp.swapaxes(y.reshape(b, q, h, k), 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
  heads: _Heads,
  query: Float[Array, 'b q d'],
  key: Float[Array, 'b n d'],
  value: Float[Array, 'b n d'],
  reads: Int[Array, 'b q'],
  is_read: Int[Array, 'b n'],
) -> Float[Array, 'b q d']:
  return _forward(heads, query, key, value, reads, is_read)[0]


def _forward(heads, query, key, value, reads, is_read):
  arguments = query, key, value, reads, is_read
  results = query, _per_row(heads, query)  # the second: log of a row's sum
  y, total = _call(_read, heads, query, ROWS, results, arguments)
  return y, (*arguments, y, total)


def _backward(heads, kept, dy):
  query, key, value, _, _, _, total = kept
  results = query, _per_row(heads, query)  # the second: of dy with y
  dquery, inner = _call(_of_queries, heads, query, ROWS, results, (*kept, dy))
  arguments = *kept[:5], total, inner, dy
  dkey, dvalue = _call(_of_keys, heads, key, COLUMNS, (key, value), arguments)
  return dquery, dkey, dvalue, None, None


_attend.defvjp(_forward, _backward)


def _per_row(heads: _Heads, query: Array) -> jax.ShapeDtypeStruct:
  shape = query.shape[0], heads.number, query.shape[1]
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def _call(
  kernel: Callable[..., None],
  heads: _Heads,
  tokens: Float[Array, 'b n d'],
  size: int,
  results: Sequence[Any],
  arguments: Sequence[Array],
) -> Sequence[Array]:
  """Runs a kernel on tiles of `size` tokens; on a CPU, step by step in JAX."""
  return pl.pallas_call(
    functools.partial(kernel, heads),
    [jax.ShapeDtypeStruct(r.shape, r.dtype) for r in results],
    grid=(pl.cdiv(tokens.shape[1], size), heads.number, len(tokens)),
    compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
    interpret=sharding.platform() == 'cpu',
  )(*arguments)


def _read(heads, query, key, value, reads, is_read, y, total):
  at, row = _here(heads), pl.program_id(0) * ROWS
  a, ids = at.tile(query, row, ROWS), at.ids(reads, row, ROWS)

  def step(j, carry):
    most, sums, out = carry
    column = j * COLUMNS
    b, c = (at.tile(x, column, COLUMNS) for x in (key, value))
    seen = _seen(at, ids, is_read, row, column)
    logits = jnp.where(seen, _dot(a, b.T) * heads.scale, _LEAST)
    new = jnp.maximum(most, jnp.max(logits, axis=1))
    weights, fade = jnp.exp(logits - new[:, None]), jnp.exp(most - new)
    out = fade[:, None] * out + _dot(weights.astype(c.dtype), c)
    return new, fade * sums + jnp.sum(weights, axis=1), out

  first = jnp.full((ROWS,), _LEAST), jnp.zeros((ROWS,)), jnp.zeros(a.shape)
  turns = pl.cdiv(key.shape[1], COLUMNS)
  most, sums, out = jax.lax.fori_loop(0, turns, step, first)
  at.store(y, row, out / sums[:, None])
  at.store_number(total, row, most + jnp.log(sums))


def _of_queries(
  heads, query, key, value, reads, is_read, y, total, dy, dquery, inner
):
  at, row = _here(heads), pl.program_id(0) * ROWS
  a, da, out = (at.tile(x, row, ROWS) for x in (query, dy, y))
  ids, sums = at.ids(reads, row, ROWS), at.number(total, row)
  product = jnp.sum(da.astype(jnp.float32) * out.astype(jnp.float32), axis=1)
  at.store_number(inner, row, product)

  def step(j, da_out):
    column = j * COLUMNS
    b, c = (at.tile(x, column, COLUMNS) for x in (key, value))
    seen = _seen(at, ids, is_read, row, column)
    _, dlogits = _gradient(heads, a, da, b, c, seen, sums, product)
    return da_out + _dot(dlogits.astype(b.dtype), b)

  turns = pl.cdiv(key.shape[1], COLUMNS)
  at.store(dquery, row, jax.lax.fori_loop(0, turns, step, jnp.zeros(a.shape)))


def _of_keys(
  heads, query, key, value, reads, is_read, total, inner, dy, dkey, dvalue
):
  at, column = _here(heads), pl.program_id(0) * COLUMNS
  b, c = (at.tile(x, column, COLUMNS) for x in (key, value))

  def step(i, carry):
    row = i * ROWS
    a, da = (at.tile(x, row, ROWS) for x in (query, dy))
    sums, product = at.number(total, row), at.number(inner, row)
    seen = _seen(at, at.ids(reads, row, ROWS), is_read, row, column)
    weights, dlogits = _gradient(heads, a, da, b, c, seen, sums, product)
    db, dc = carry
    db += _dot(dlogits.astype(a.dtype).T, a)
    return db, dc + _dot(weights.astype(da.dtype).T, da)

  turns = pl.cdiv(query.shape[1], ROWS)
  zeros = jnp.zeros(b.shape), jnp.zeros(c.shape)
  db, dc = jax.lax.fori_loop(0, turns, step, zeros)
  at.store(dkey, column, db)
  at.store(dvalue, column, dc)


def _gradient(heads, a, da, b, c, seen, sums, product):
  """Returns the weights of a tile, and the gradient of its products."""
  logits = jnp.where(seen, _dot(a, b.T) * heads.scale, _LEAST)
  weights = jnp.exp(logits - sums[:, None])
  return weights, weights * (_dot(da, c.T) - product[:, None]) * heads.scale


def _seen(at, ids, is_read, row, column) -> Bool[Array, 'rows columns']:
  """Tells of a tile which queries may read which tokens."""
  seen = ids[:, None] == at.ids(is_read, column, COLUMNS)[None]
  if not at.heads.causal:
    return seen
  place = lambda start, size: start + jnp.arange(size, dtype=jnp.int32)
  return seen & (place(row, ROWS)[:, None] >= place(column, COLUMNS)[None])


def _dot(a: Float[Array, 'n d'], b: Float[Array, 'd f']) -> Float[Array, 'n f']:
  return jnp.dot(a, b, preferred_element_type=jnp.float32)


class _Here(NamedTuple):
  """Where a program is, and how it reads and writes there.

  Attributes:
    heads: what it knows.
    head: its head.
    example: its example.
  """

  heads: _Heads
  head: Int[Array, '']
  example: Int[Array, '']

  def tile(self, ref: Any, start: Any, size: int) -> Float[Array, 'size wide']:
    """Returns the head's columns of some tokens; 0 past the last."""
    return tiles.load(ref, *self._spans(ref, start, size), self.example)

  def store(self, ref: Any, start: Any, tile: Float[Array, 'size wide']):
    """Writes the head's columns of some tokens."""
    spans = self._spans(ref, start, len(tile))
    tiles.store(ref, tile, *spans, self.example)

  def ids(self, ref: Any, start: Any, size: int) -> Int[Array, ' size']:
    """Returns the documents of some tokens; past the last, nobody's."""
    inside = start + jnp.arange(size, dtype=jnp.int32) < ref.shape[1]
    place = ref.at[self.example, pl.dslice(start, size)]
    return triton.load(place, mask=inside, other=visibility.HIDDEN)

  def number(self, ref: Any, start: Any) -> Float[Array, ' rows']:
    """Returns a number of each of some queries; 0 past the last."""
    place, inside = self._queries(ref, start)
    return triton.load(place, mask=inside, other=0.0)

  def store_number(self, ref: Any, start: Any, values: Float[Array, ' rows']):
    """Writes a number of each of some queries."""
    place, inside = self._queries(ref, start)
    triton.store(place, values, mask=inside)

  def _spans(self, ref, start, size) -> tuple[tiles.Span, tiles.Span]:
    width = self.heads.width
    first = self.head * width
    # A kernel multiplies by no less than 16, and by a power of two.
    wide = max(16, pl.next_power_of_2(width))
    end = ref.shape[2] if wide == width else first + width
    return (start, size, ref.shape[1]), (first, wide, end)

  def _queries(self, ref, start):
    inside = start + jnp.arange(ROWS, dtype=jnp.int32) < ref.shape[2]
    return ref.at[self.example, self.head, pl.dslice(start, ROWS)], inside


def _here(heads: _Heads) -> _Here:
  return _Here(heads, pl.program_id(1), pl.program_id(2))
