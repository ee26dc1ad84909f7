"""Tokens to slots and back by soft weights that are never all in memory.

Soft MoE's dispatch is attention: the slots' parameters ask, the tokens answer;
its combine is the same the other way round. What asks gets the mean of what
answers under the softmax of their products. Those weights are made a tile at a
time and thrown away: forward with a running maximum and a running sum (Milakov
& Gimelshein, 2018, https://arxiv.org/abs/1805.02867), backward once more, from
the logarithm of that sum (FlashAttention, Dao et al., 2022,
https://arxiv.org/abs/2205.14135). The result is exact, and memory is that of
what asks and what answers, not of their pairs.

Axes: `g` groups, `m` tokens, `n` slots of all experts, `k` width of the
logits' factors, `d` width; `q` rows that ask, `a` rows that answer.
"""

import functools
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

TILE = 1024  # the most rows that ask, or answer, at a time
LOWEST = jnp.finfo(jnp.float32).min


class Attended(NamedTuple):
  """What those who ask got.

  Attributes:
    mean: of the values, under the weights; 0 where all are masked.
    log_sum: logarithm of the sum of exponentials that normalises the weights.
    peak: the largest weight; has no gradient.
  """

  mean: Float[Array, '*g q d']
  log_sum: Float[Array, '*g q']
  peak: Float[Array, '*g q']


@jax.named_scope('dispatch')
def dispatch(
  x: Float[Array, 'g m d'],
  tokens: Float[Array, 'g m k'],
  slots: Float[Array, 'n k'],
  mask: Bool[Array, 'g m'] | None = None,
) -> Attended:
  """Returns for every slot the mean of x under softmax over the tokens.

  Products of tokens and slots are in float32 whatever the platform makes of
  others, and so are sums; weights are rounded to the type of x. Inside
  `jax.shard_map` all arguments must vary over the same axes.

  Args:
    x: what slots are means of.
    tokens: float32, of the logits `tokens @ slots.T`.
    slots: float32.
    mask: False where a token has no weight.
  """
  if mask is None:
    mask = jnp.ones_like(tokens[..., 0], bool)
  return _attend(True, TILE, tokens, slots, x, mask)


@jax.named_scope('combine')
def combine(
  y: Float[Array, 'g n d'],
  tokens: Float[Array, 'g m k'],
  slots: Float[Array, 'n k'],
) -> Attended:
  """Returns for every token the mean of y under softmax over the slots.

  Args:
    y: what slots give back.
    tokens: as for `dispatch`.
    slots: as for `dispatch`.
  """
  return _attend(False, TILE, tokens, slots, y, jnp.ones_like(y[..., 0], bool))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(slots_ask, tile, tokens, slots, values, mask):
  return _forward(slots_ask, tile, tokens, slots, values, mask)[0]


def _forward(slots_ask, tile, tokens, slots, values, mask):
  def one(group):
    tokens, *answers = group
    asks, keys = (slots, tokens) if slots_ask else (tokens, slots)
    return _ask(tile, asks, (keys, *answers))

  found = jax.lax.map(one, (tokens, values, mask))
  return found, (tokens, slots, values, mask, found.mean, found.log_sum)


def _backward(slots_ask, tile, residuals, cotangents):
  tokens, slots, values, mask, mean, log_sum = residuals
  dmean, dlog_sum, _ = cotangents
  inner = jnp.einsum('gqd,gqd->gq', dmean, mean, **_FLOAT32)

  def one(dslots, group):
    tokens, asked, answers = group
    asks, keys = (slots, tokens) if slots_ask else (tokens, slots)
    dasks, (dkeys, dvalues) = _pull(tile, (asks, *asked), (keys, *answers))
    here, dtokens = (dasks, dkeys) if slots_ask else (dkeys, dasks)
    return dslots + here, (dtokens, dvalues.astype(values.dtype))

  groups = tokens, (dmean, log_sum, inner - dlog_sum), (values, mask)
  dslots, (dtokens, dvalues) = jax.lax.scan(one, jnp.zeros_like(slots), groups)
  return dtokens, dslots, dvalues, None


_attend.defvjp(_forward, _backward)


def _ask(
  tile: int, asks: Float[Array, 'q k'], answers: tuple[Array, Array, Array]
) -> Attended:
  """Returns what the rows of one group get from keys, values and mask."""
  values, tiled = answers[1], [_tiles(v, tile) for v in answers]

  def one(rows):
    zeros = functools.partial(jnp.zeros_like, rows, dtype=jnp.float32)
    nothing = zeros(shape=len(rows))
    start = nothing + LOWEST, nothing, zeros(shape=(len(rows), values.shape[1]))
    add = functools.partial(_add, rows)
    (top, total, mean), _ = jax.lax.scan(add, start, tiled)
    some = total > 0
    total = jnp.where(some, total, 1)
    mean = (mean / total[:, None]).astype(values.dtype)
    return Attended(mean, top + jnp.log(total), jnp.where(some, 1 / total, 0))

  found = jax.lax.map(one, _tiles(asks, tile))
  return jax.tree.map(lambda v: _untiled(v, len(asks)), found)


def _add(rows, sums, answers):
  """Adds a tile of answers to the sums, which are relative to the maximum."""
  (top, total, mean), (keys, values, real) = sums, answers
  logits = jnp.where(real, _product(rows, keys.T), LOWEST)
  new = jnp.maximum(top, jnp.max(logits, axis=1))
  weights = jnp.where(real, jnp.exp(logits - new[:, None]), 0)
  shrink = jnp.exp(top - new)
  total = total * shrink + jnp.sum(weights, axis=1)
  mean = mean * shrink[:, None] + _weigh(weights, values)
  return (new, total, mean), None


def _pull(
  tile: int,
  asked: tuple[Array, Array, Array, Array],
  answers: tuple[Array, Array, Array],
) -> tuple[Array, tuple[Array, Array]]:
  """Returns the gradients of the rows that ask, and of keys and values.

  Args:
    tile: rows at a time.
    asked: the rows, the gradients of their means, `log_sum`, and what
      normalising takes from the gradient of a logit.
    answers: keys, values and mask.
  """
  by_row = [_tiles(v, tile) for v in asked]

  def one(dasks, answers):
    zeros = tuple(jnp.zeros_like(v, dtype=jnp.float32) for v in answers[:2])
    add = functools.partial(_add_gradients, answers)
    return jax.lax.scan(add, zeros, (dasks, *by_row))[::-1]

  tiled = tuple(_tiles(v, tile) for v in answers)
  dasks, danswers = jax.lax.scan(one, jnp.zeros_like(by_row[0]), tiled)
  untiled = lambda v: _untiled(v, len(answers[0]))
  return _untiled(dasks, len(asked[0])), jax.tree.map(untiled, danswers)


def _add_gradients(answers, sums, asked):
  """Adds what a tile of rows asks of a tile of answers."""
  (keys, values, real), (dkeys, dvalues) = answers, sums
  drows, rows, dmean, log_sum, shift = asked
  logits = _product(rows, keys.T)
  weights = jnp.where(real, jnp.exp(logits - log_sum[:, None]), 0)
  dweights = jnp.matmul(dmean, values.T, **_FLOAT32)
  dlogits = weights * (dweights - shift[:, None])
  dkeys += _product(dlogits.T, rows)
  dvalues += _weigh(weights.T, dmean)
  return (dkeys, dvalues), drows + _product(dlogits, keys)


_FLOAT32 = {'preferred_element_type': jnp.float32}


def _product(
  a: Float[Array, 'i k'], b: Float[Array, 'k j']
) -> Float[Array, 'i j']:
  # By default TPUs and GPUs would round the operands to fewer bits.
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _weigh(
  weights: Float[Array, 'i j'], values: Float[Array, 'j d']
) -> Float[Array, 'i d']:
  return jnp.matmul(weights.astype(values.dtype), values, **_FLOAT32)


def _tiles(v: Shaped[Array, 'n *rest'], tile: int) -> Shaped[Array, 't _ *r']:
  """Returns v in tiles of equal size, the last filled up with zeros."""
  number = -(-len(v) // tile)
  size = -(-len(v) // number)
  v = jnp.pad(v, [(0, number * size - len(v))] + [(0, 0)] * (v.ndim - 1))
  return v.reshape(number, size, *v.shape[1:])


def _untiled(v: Shaped[Array, 't _ *r'], n: int) -> Shaped[Array, 'n *rest']:
  return v.reshape(-1, *v.shape[2:])[:n]
