"""Tokens, one at a time, with keys and values of what is there kept.

Axes: `p` prompts, `b` of them at a time, `m` tokens of a prompt, `n` new ones,
`v` vocabulary.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Float, Int, Key

from softmoe.errors import UserError
from softmoe.models import decoder


class Sampling(NamedTuple):
  """How the next token is drawn.

  Attributes:
    tokens: how many are drawn.
    temperature: divides the logits; 0 takes the most probable token.
    top_k: draws from so many of the most probable ones; 0: from all.
    seed: of the draws.
    beam: hypotheses that a search keeps, where a task searches.
  """

  tokens: int
  temperature: float = 1.0
  top_k: int = 0
  seed: int = 0
  beam: int = 1


def check(sampling: Sampling) -> None:
  """Raises a UserError for a number that is out of its range."""
  for field, valid, expected in (
    ('tokens', sampling.tokens >= 1, 'at least 1'),
    (
      'temperature',
      0 <= sampling.temperature < math.inf,
      'finite, 0 or more',
    ),
    ('top_k', sampling.top_k >= 0, '0 or more'),
    ('seed', 0 <= sampling.seed < 2**32, f'0 to {2**32 - 1}'),
    ('beam', sampling.beam >= 1, 'at least 1'),
  ):
    if not valid:
      raise UserError(field, getattr(sampling, field), expected)


def generate(
  model: decoder.Decoder,
  prompts: Sequence[Int[np.ndarray, '_']],
  sampling: Sampling,
  rows: int,
) -> Int[np.ndarray, 'p n']:
  """Returns what goes on from each prompt, whose draws are its own.

  Whatever the prompts, it is compiled once: all are read as far as the shortest
  goes, and from there on token by token, the given ones first.

  Args:
    model: whose mesh is in force.
    prompts: at least one, of at least one token each.
    sampling: how the next token is drawn.
    rows: prompts at a time; as many as fill the groups of examples that are
      routed together.

  Raises:
    UserError: there are not so many positions, or `sampling` is wrong.
  """
  check(sampling)
  lengths = [len(prompt) for prompt in prompts]
  fill = -len(prompts) % rows  # with prompts of no token
  given = np.zeros((len(prompts) + fill, max(lengths)), np.int32)
  for row, prompt in enumerate(prompts):
    given[row, : len(prompt)] = prompt
  key = jax.random.key(sampling.seed)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(len(given)))
  each = given, np.pad(lengths, (0, fill)), keys
  # What is compiled is the same for any seed.
  how = min(lengths), sampling._replace(seed=0, beam=1)
  found = [
    jax.device_get(_go_on(model, *(v[i : i + rows] for v in each), *how))
    for i in range(0, len(given), rows)
  ]
  return np.concatenate(found)[: len(prompts)]


@functools.partial(jax.jit, static_argnums=(4, 5))
def _go_on(
  model: decoder.Decoder,
  prompts: Int[Array, 'b m'],
  lengths: Int[Array, ' b'],
  keys: Key[Array, ' b'],
  start: int,
  sampling: Sampling,
) -> Int[Array, 'b n']:
  """Returns what goes on from prompts of at least `start` tokens, or of 0."""
  last = prompts.shape[1] + sampling.tokens
  caches = model.init_caches(prompts, last)
  given = jnp.pad(prompts, ((0, 0), (0, sampling.tokens)))

  def draw(tokens, caches, place):
    mask = jnp.broadcast_to(lengths[:, None] > 0, tokens.shape)
    x, _, caches = model(tokens, mask=mask, caches=caches)
    own = jax.vmap(jax.random.fold_in)(keys, place - lengths)
    drawn = pick(model.logits(x[:, -1:])[:, 0], sampling, own)
    return jnp.where(place < lengths, given[:, place], drawn), caches

  def step(carry, place):
    token, caches = draw(carry[0][:, None], carry[1], place)
    return (token, caches), token

  first, caches = draw(prompts[:, :start], caches, start)
  places = jnp.arange(start + 1, last)
  _, rest = jax.lax.scan(step, (first, caches), places)
  tokens = jnp.concatenate([first[None], rest]).T
  new = (lengths - start)[:, None] + jnp.arange(sampling.tokens)[None]
  return jnp.take_along_axis(tokens, new, axis=1)


def pick(
  logits: Float[Array, 'b v'], sampling: Sampling, keys: Key[Array, ' b']
) -> Int[Array, ' b']:
  """Returns a token of each example, by a key of its own."""
  if not sampling.temperature:
    return jnp.argmax(logits, axis=-1)
  if sampling.top_k:
    most = min(sampling.top_k, logits.shape[-1])
    least = jax.lax.top_k(logits, most)[0][:, -1:]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  draw = jax.vmap(jax.random.categorical)
  return draw(keys, logits / sampling.temperature)
