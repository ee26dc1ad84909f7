"""Beam search: the most probable sequence, as far as few hypotheses can tell.

Axes: `b` examples, `k` hypotheses of each, `n` tokens, `v` vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from softmoe import sharding

# From the last tokens (b k, 1) and caches to logits (b k, v) and caches.
Step = Callable[[Array, Any], tuple[Array, Any]]
# From caches and parents (b, k) to the caches of these hypotheses.
Reorder = Callable[[Any, Array], Any]


class Search(NamedTuple):
  """How to search.

  Attributes:
    beam: hypotheses that are kept; 1 is greedy.
    length: the most tokens, EOS among them.
    penalty: power of the length that log probabilities are divided by.
  """

  beam: int
  length: int
  penalty: float = 1.0


class Hypotheses(NamedTuple):
  """Sequences, the best first.

  Attributes:
    tokens: EOS and whatever is behind it are EOS.
    scores: log probability over length ** penalty; -inf where there is none.
  """

  tokens: Int[Array, 'b k n']
  scores: Float[Array, 'b k']


class _Beam(NamedTuple):
  """What there is beside the caches: hypotheses that are open, and ended."""

  last: Array  # (b k, 1)
  open: Hypotheses  # with log probabilities for scores
  ended: Hypotheses


def search(
  step: Step,
  reorder: Reorder,
  caches: Any,
  first: Int[Array, ' b'],
  eos: int,
  how: Search,
) -> Hypotheses:
  """Returns the ended hypotheses; open ones where none has ended.

  A hypothesis ends where EOS is among its `how.beam` best next tokens of all.
  An example is done with `how.beam` ended ones, or at `how.length` tokens, and
  what it finds does not depend on the others.

  Args:
    step: the model.
    reorder: of the caches; no hypothesis leaves its example.
    caches: for b k rows, the k of an example side by side.
    first: the token before the first of each example.
    eos: the token that ends a sequence.
    how: see `Search`.
  """

  def advance(state):
    i, beam, caches = state
    logits, caches = step(beam.last, caches)
    choose = functools.partial(_choose, eos, how)
    beam, parents = sharding.by_example(choose, i, logits, beam)
    return i + 1, beam, reorder(caches, parents)

  goes_on = lambda state: (
    (state[0] < how.length) & ~jnp.all(_done(state[1].ended))
  )
  start = jnp.int32(0), _start(first, eos, how), caches
  _, beam, _ = jax.lax.while_loop(goes_on, advance, start)
  none = jnp.max(beam.ended.scores, axis=1, keepdims=True) == -jnp.inf
  cut = beam.open.scores / how.length**how.penalty
  return Hypotheses(
    tokens=jnp.where(none[..., None], beam.open.tokens, beam.ended.tokens),
    scores=jnp.where(none, cut, beam.ended.scores),
  )


def _start(first: Int[Array, ' b'], eos: int, how: Search) -> _Beam:
  shape = (len(first), how.beam)
  # Made of `first`, so as to be split as it is.
  tokens = jnp.broadcast_to(first[:, None, None], (*shape, how.length))
  tokens = jnp.full_like(tokens, eos)
  none = jnp.zeros_like(tokens[..., 0], jnp.float32) - jnp.inf
  # All are the same at first: one of them has a future.
  open_scores = jnp.where(jnp.arange(how.beam)[None] == 0, 0.0, none)
  last = sharding.repeat(first[:, None], how.beam)
  return _Beam(last, Hypotheses(tokens, open_scores), Hypotheses(tokens, none))


def _done(ended: Hypotheses) -> Bool[Array, ' b']:
  return jnp.all(ended.scores > -jnp.inf, axis=1)


def _choose(
  eos: int, how: Search, i: Array, logits: Float[Array, 'r v'], beam: _Beam
) -> tuple[_Beam, Int[Array, 'b k']]:
  """Returns the hypotheses with a token more, and whose caches they need."""
  b, k, _ = beam.open.tokens.shape
  logs = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(b, k, -1)
  size = logs.shape[-1]
  totals = (beam.open.scores[..., None] + logs).reshape(b, -1)
  # Twice as many: were half of them to end, there are enough to go on.
  scores, index = jax.lax.top_k(totals, min(2 * k, k * size))
  parent, token = index // size, (index % size).astype(beam.last.dtype)
  tokens = _take(beam.open.tokens, parent)
  tokens = jax.lax.dynamic_update_index_in_dim(tokens, token, i, 2)
  ends, first = token == eos, jnp.arange(token.shape[1])[None] < k
  counts = ends & first & ~_done(beam.ended)[:, None]
  length = (i + 1).astype(jnp.float32)
  ended = jnp.where(counts, scores / length**how.penalty, -jnp.inf)
  ended = _best(k, beam.ended, Hypotheses(tokens, ended))
  scores, order = jax.lax.top_k(jnp.where(ends, -jnp.inf, scores), k)
  parent, token = _take(parent, order), _take(token, order)
  chosen = Hypotheses(_take(tokens, order), scores)
  return _Beam(token.reshape(-1, 1), chosen, ended), parent


def _best(k: int, *found: Hypotheses) -> Hypotheses:
  """Returns the k best, earlier ones first among equals."""
  tokens, scores = (
    jnp.concatenate(parts, 1) for parts in zip(*found, strict=True)
  )
  scores, order = jax.lax.top_k(scores, k)
  return Hypotheses(_take(tokens, order), scores)


def _take(values: Array, index: Int[Array, 'b j']) -> Array:
  """Returns values (b, i, ...) at an index of each example."""
  return jax.vmap(lambda v, i: v[i])(values, index)
