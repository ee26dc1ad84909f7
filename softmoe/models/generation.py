"""Text, a token at a time, with keys and values of what is there kept.

Axes: `b` examples, `m` tokens of a prompt, `n` new tokens, `v` vocabulary.
"""

import functools
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
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
  """

  tokens: int
  temperature: float = 1.0
  top_k: int = 0


class Tokenizer(Protocol):
  """What is asked of a tokenizer here."""

  eos: int

  def encode(self, text: str) -> Any:
    """Returns the tokens of a text."""
    ...

  def decode(self, ids: Any) -> str:
    """Returns the text of tokens."""
    ...


def check(sampling: Sampling) -> None:
  """Raises a UserError for a number that is out of its range."""
  for field, valid, expected in (
    ('tokens', sampling.tokens >= 1, 'at least 1'),
    ('temperature', sampling.temperature >= 0, '0 or more'),
    ('top_k', sampling.top_k >= 0, '0 or more'),
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
  batch, length = prompt.shape
  caches = model.init_caches(batch, length + sampling.tokens)
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


def write(
  model: decoder.Decoder,
  tokenizer: Tokenizer,
  prompt: str,
  sampling: Sampling,
  seed: int = 0,
) -> str:
  """Returns a prompt and what goes on from it, to the end of the document.

  Raises:
    UserError: as `generate`.
  """
  # The token that ends a document is the one before the first of the next.
  start = np.array([tokenizer.eos, *tokenizer.encode(prompt)], np.int32)
  key = jax.random.key(seed)
  found = generate(model, jnp.asarray(start)[None], sampling, key)
  tokens = np.asarray(jax.device_get(found))[0]
  ends = np.flatnonzero(tokens == tokenizer.eos)
  tokens = tokens[: ends[0]] if len(ends) else tokens
  return tokenizer.decode(np.concatenate([start[1:], tokens]))
