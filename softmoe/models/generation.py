"""Tokens, one at a time, with keys and values of what is there kept.

Axes: `b` examples, `m` tokens of a prompt, `n` new tokens, `v` vocabulary.
"""

import functools
import math
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

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


@functools.partial(jax.jit, static_argnums=2)
def generate(
  model: decoder.Decoder,
  prompt: Int[Array, 'b m'],
  sampling: Sampling,
  key: PRNGKeyArray,
) -> Int[Array, 'b n']:
  """Returns what goes on from prompts of one length, batched as they are.

  Args:
    model: whose mesh is in force.
    prompt: at least one token of each example.
    sampling: how the next token is drawn.
    key: of the draws.

  Raises:
    UserError: there are not so many positions, or `sampling` is wrong.
  """
  check(sampling)
  caches = model.init_caches(prompt, prompt.shape[1] + sampling.tokens)
  keys = jax.random.split(key, sampling.tokens)

  def draw(tokens, caches, key):
    x, _, caches = model(tokens, caches=caches)
    return pick(model.logits(x[:, -1:])[:, 0], sampling, key), caches

  def step(carry, key):
    token, caches = draw(carry[0][:, None], carry[1], key)
    return (token, caches), token

  first, caches = draw(prompt, caches, keys[0])
  _, rest = jax.lax.scan(step, (first, caches), keys[1:])
  return jnp.concatenate([first[None], rest]).T


def pick(
  logits: Float[Array, 'b v'], sampling: Sampling, key: PRNGKeyArray
) -> Int[Array, ' b']:
  """Returns a token of each example."""
  if not sampling.temperature:
    return jnp.argmax(logits, axis=-1)
  if sampling.top_k:
    least = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  return jax.random.categorical(key, logits / sampling.temperature)
