"""Every wanted pair of token and expert computed, and no other.

Axes: `m` tokens, `d` width, `e` experts, `n` pairs. `apply` loops over the
experts and, for each, over its tokens a chunk at a time: trip counts follow
the number of pairs, so that a router that wants half as many costs half as
much, on CPU too. `apply_grouped` fills a buffer of fixed size, as often as it
takes, for accelerators, whose grouped matmul wants many rows at once.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from softmoe import recompute
from softmoe.errors import UserError
from softmoe.moe.execution import chunks, floats, rounds


def apply(
  expert_fn: Callable[..., Array],
  params: Any,
  x: Float[Array, 'm d'],
  gates: Float[Array, 'm e'],
  wanted: Bool[Array, 'm e'],
  *,
  gated: bool = False,
  chunk: int = chunks.CHUNK,
) -> Float[Array, 'm d_out']:
  """Returns for each token the gated sum of what its experts return.

  y[t] = sum over the e that t wants of gates[t, e] * expert_fn(params[e], x[t])

  Sums are in float32. The backward pass keeps no activation: it recomputes
  each chunk, and writes an expert's gradient once. Under `vmap` every instance
  takes as long as the longest: flatten groups into m instead. Inside
  `jax.shard_map` all arguments must vary over the same axes
  (`jax.lax.pcast`).

  Args:
    expert_fn: maps one expert's parameters and rows (n, d) to (n, d_out), each
      row by itself.
    params: pytree of arrays with a leading axis e, such as a module.
    x: tokens.
    gates: read only where wanted.
    wanted: the pairs to compute.
    gated: `expert_fn` takes the gates of the rows, float32 (n,), as a third
      argument and returns its output times them. An expert that ends in a
      linear map saves a matmul of the backward pass by gating the map's input:
      the gates' gradient then needs no output.
    chunk: rows at a time.

  Raises:
    ValueError: `chunk` is not a positive multiple of 4.
  """
  _check_chunk(chunk)
  fn = expert_fn if gated else _gate_output(expert_fn)
  weights, others, join = floats.split(params)

  def run(weights, others, x, gates):
    return fn(join(weights, others), x, gates)

  gates = gates.astype(jnp.float32)
  return _apply(run, chunk, weights, others, x, gates, wanted)


def executed(
  wanted: Bool[Array, 'm e'], chunk: int = chunks.CHUNK
) -> Float[Array, '']:
  """Returns the rows that `apply` computes, those that fill up included."""
  _check_chunk(chunk)
  part = chunk // chunks.PARTS
  counts = jnp.sum(wanted, axis=0, dtype=jnp.int32)
  return jnp.sum(-(-counts // part) * part).astype(jnp.float32)


def apply_grouped(
  grouped_fn: Callable[[Any, Array, Array], Array],
  params: Any,
  x: Float[Array, 'm d'],
  gates: Float[Array, 'm e'],
  wanted: Bool[Array, 'm e'],
  room: rounds.Room,
) -> Float[Array, 'm d_out']:
  """Returns what `apply` does, in rounds of a buffer.

  Args:
    grouped_fn: maps parameters, rows (n, d), sorted by expert, and the number
      of rows of each expert (e,) to (n, d_out): see `grouped_matmul`. Rows past
      the last expert's are 0; what it returns for them is not read.
    params: pytree of arrays with a leading axis e, such as a module.
    x: tokens.
    gates: read only where wanted.
    wanted: the pairs to compute.
    room: for pairs.
  """

  def run(start, num_rows, arguments):
    params, x, gates, pairs = arguments
    experts = functools.partial(grouped_fn, params)
    return sum_pairs(experts, x, gates, pairs, start, num_rows)

  pairs = sort(wanted)
  arguments = params, x, gates.astype(jnp.float32), pairs
  y = rounds.total(run, room, jnp.sum(pairs.count), arguments, cast)
  return y.astype(x.dtype)


def cast(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
  """Returns them with the experts, which come first, as these compute."""
  experts, *others = arguments
  return (experts.cast() if hasattr(experts, 'cast') else experts, *others)


def sum_pairs(
  grouped_fn: Callable[[Array, Array], Array],
  x: Float[Array, 'm d'],
  gates: Float[Array, 'm e'],
  pairs: 'Pairs',
  start: Int[Array, ''],
  num_rows: int,
) -> Float[Array, 'm d_out']:
  """Returns for each token the sum over some of its pairs, in float32.

  Args:
    grouped_fn: see `apply_grouped`, less its parameters.
    x: tokens.
    gates: in float32.
    pairs: all of them.
    start: the first of those that are summed.
    num_rows: how many there are.
  """
  row = start + jnp.arange(num_rows, dtype=jnp.int32)
  ends = pairs.start + pairs.count
  real = row < ends[-1]
  token = pairs.token[jnp.minimum(row, len(pairs.token) - 1)]
  sizes = jnp.diff(jnp.clip(ends - start, 0, num_rows), prepend=0)
  out = grouped_fn(_gather(x, token, real), sizes)
  expert = jnp.searchsorted(ends, row, side='right')
  gate = gates[token, jnp.minimum(expert, gates.shape[1] - 1)]
  combine = functools.partial(_combine, num_tokens=len(x))
  return recompute.from_arguments(combine)(out, gate, token, real)


@jax.named_scope('dispatch')
def _gather(
  x: Float[Array, 'm d'], token: Int[Array, ' n'], real: Bool[Array, ' n']
) -> Float[Array, 'n d']:
  # In float32 from end to end, since gradients are summed where tokens repeat.
  # Tokens that are not there, in place of a mask, which would be kept.
  token = jnp.where(real, token, len(x))
  rows = x.astype(jnp.float32).at[token].get(mode='fill', fill_value=0)
  return rows.astype(x.dtype)


@jax.named_scope('combine')
def _combine(
  out: Float[Array, 'n d_out'],
  gate: Float[Array, ' n'],
  token: Int[Array, ' n'],
  real: Bool[Array, ' n'],
  num_tokens: int,
) -> Float[Array, 'm d_out']:
  out = jnp.where(real[:, None], gate[:, None] * out.astype(jnp.float32), 0)
  return jax.ops.segment_sum(out, token, num_tokens)


def _check_chunk(chunk: int):
  if chunk < 1 or chunk % chunks.PARTS:
    raise UserError('chunk', chunk, f'a positive multiple of {chunks.PARTS}')


def _gate_output(expert_fn: Callable[[Any, Array], Array]) -> Callable:
  return lambda expert, x, gates: gates[:, None] * expert_fn(expert, x)


class Pairs(NamedTuple):
  """All pairs, expert after expert; `token` is unused after the last."""

  token: Int[Array, ' n']
  start: Int[Array, ' e']
  count: Int[Array, ' e']


@jax.named_scope('dispatch')
def sort(wanted: Bool[Array, 'm e']) -> Pairs:
  """Returns the wanted pairs, sorted by expert."""
  m, e = wanted.shape
  seen = jnp.cumsum(wanted.T, axis=1, dtype=jnp.int32)
  count = seen[:, -1]
  start = jnp.cumsum(count) - count
  place = jnp.where(wanted.T, start[:, None] + seen - 1, m * e)
  index = jnp.broadcast_to(jnp.arange(m, dtype=jnp.int32), (e, m))
  token = jnp.zeros_like(seen, shape=(m * e,))
  token = token.at[place].set(index, mode='drop')
  return Pairs(token, start, count)


@jax.named_scope('combine')
def _add(
  total: Float[Array, 'm *d'],
  token: Int[Array, ' chunk'],
  x: Float[Array, 'chunk *d'],
) -> Float[Array, 'm *d']:
  return total.at[token].add(x, mode='promise_in_bounds')


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _apply(fn, chunk, weights, others, x, gates, wanted):
  return _forward(fn, chunk, weights, others, x, gates, wanted)[0]


def _forward(fn, chunk, weights, others, x, gates, wanted):
  pairs = sort(wanted)

  def expert(y, one):
    weights, others, gate, start, count = one

    def body(y, rows, real, run):
      token = pairs.token[rows]
      inputs, gates = x[token], jnp.where(real, gate[token], 0)
      step = lambda n: fn(weights, others, inputs[:n], gates[:n])
      out = run(lambda n: chunks.pad(step(n), chunk))
      return _add(y, token, out)

    return chunks.each_chunk(body, y, start, count, chunk), None

  all_experts = weights, others, gates.T, pairs.start, pairs.count
  one = jax.tree.map(lambda a: a[0], (weights, others))
  width = jax.eval_shape(fn, *one, x[:1], gates[:1, 0]).shape[-1]
  y = jnp.zeros_like(x, shape=(len(x), width), dtype=jnp.float32)
  y = jax.lax.scan(expert, y, all_experts)[0]
  return y.astype(x.dtype), (weights, others, x, gates, pairs)


def _backward(fn, chunk, residuals, dy):
  weights, others, x, gates, pairs = residuals

  def expert(dx, one):
    weights, others, gate, start, count = one

    def body(state, rows, real, run):
      dx, dweights, dgate = state
      token = pairs.token[rows]
      inputs, outputs = x[token], dy[token]
      gates = jnp.where(real, gate[token], 0)

      def step(n):
        f = lambda w, x, g: fn(w, others, x, g)
        out, pull = jax.vjp(f, weights, inputs[:n], gates[:n])
        dw, dx, dg = pull(outputs[:n].astype(out.dtype))
        return dw, chunks.pad(dx, chunk), chunks.pad(dg, chunk)

      dw, dinputs, dg = run(step)
      dweights = jax.tree.map(lambda a, b: a + b, dweights, dw)
      dgate = _add(dgate, token, jnp.where(real, dg, 0))
      return _add(dx, token, dinputs), dweights, dgate

    zeros = lambda w: jnp.zeros_like(w, dtype=jnp.float32)
    state = dx, jax.tree.map(zeros, weights), zeros(gate)
    state = chunks.each_chunk(body, state, start, count, chunk)
    dx, dweights, dgate = state
    cast = lambda d, w: d.astype(w.dtype)
    return dx, (jax.tree.map(cast, dweights, weights), dgate)

  dx = jnp.zeros_like(x, dtype=jnp.float32)
  all_experts = weights, others, gates.T, pairs.start, pairs.count
  dx, (dweights, dgates) = jax.lax.scan(expert, dx, all_experts)
  return dweights, None, dx.astype(x.dtype), dgates.T, None


_apply.defvjp(_forward, _backward)
