"""Tokens to the experts' slots and back.

Axes: `*b` any leading axes, `g` groups, `m` tokens, `d` width, `e` experts, `s`
slots of one expert (for sparse routing its capacity). Slots come expert-major,
(e, *b, s, d): one matmul an expert.
"""

from typing import NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from softmoe.moe import routing


@jax.named_scope('dispatch')
def dispatch(
  x: Float[Array, '*b m d'], weights: Float[Array, '*b m e s']
) -> Float[Array, 'e *b s d']:
  """Returns slots, each the sum of tokens under its dispatch weights."""
  return jnp.einsum('...md,...mes->e...sd', x, weights.astype(x.dtype))


@jax.named_scope('combine')
def combine(
  y: Float[Array, 'e *b s d'], weights: Float[Array, '*b m e s']
) -> Float[Array, '*b m d']:
  """Returns tokens, each the sum of slot outputs under its combine weights."""
  return jnp.einsum('e...sd,...mes->...md', y, weights.astype(y.dtype))


class Kept(NamedTuple):
  """What the experts' slots hold.

  Attributes:
    token: the token in a slot; any token where the slot is empty.
    gate: weight of the slot's output; 0 where the slot is empty.
    filled: False where the slot is empty.
  """

  token: Int[Array, 'g e s']
  gate: Float[Array, 'g e s']
  filled: Bool[Array, 'g e s']


@jax.named_scope('router')
def keep(assignment: routing.Assignment, capacity: int) -> Kept:
  """Returns the tokens of the highest priority, up to the capacity."""
  priority = jnp.swapaxes(jax.lax.stop_gradient(assignment.priority), -1, -2)
  best, token = jax.lax.top_k(priority, capacity)
  gates = jnp.swapaxes(assignment.gates, -1, -2)
  filled = best > -jnp.inf
  gate = jnp.where(filled, jnp.take_along_axis(gates, token, axis=-1), 0)
  return Kept(token, gate, filled)


def granted(kept: Kept, num_tokens: int) -> Bool[Array, 'g m e']:
  """Tells which tokens are in the slots of which experts."""
  none = jnp.zeros_like(kept.filled, shape=(*kept.token.shape[:2], num_tokens))
  mark = jax.vmap(
    jax.vmap(lambda row, token, filled: row.at[token].set(filled))
  )
  return jnp.swapaxes(mark(none, kept.token, kept.filled), 1, 2)


def as_slots(kept: Kept, num_tokens: int) -> routing.Slots:
  """Returns the same as dense weights: one-hot vectors over the tokens."""
  hot = jax.nn.one_hot(kept.token, num_tokens, axis=1)  # g m e s
  gate = kept.gate[:, None]
  return routing.Slots(hot * kept.filled[:, None], hot * gate)


@jax.named_scope('dispatch')
def gather(x: Float[Array, 'g m d'], kept: Kept) -> Float[Array, 'e g s d']:
  """Returns the tokens in the slots; an empty slot holds any token."""
  g, e, s = kept.token.shape
  rows = jnp.take_along_axis(x, kept.token.reshape(g, e * s, 1), axis=1)
  return jnp.swapaxes(rows.reshape(g, e, s, -1), 0, 1)


@jax.named_scope('combine')
def scatter(
  y: Float[Array, 'e g s d'], kept: Kept, num_tokens: int
) -> Float[Array, 'g m d']:
  """Returns for every token the sum of gate times output over its slots."""
  g, e, s = kept.token.shape
  y = jnp.swapaxes(y, 0, 1) * kept.gate.astype(y.dtype)[..., None]
  zeros = jnp.zeros((g, num_tokens, y.shape[-1]), y.dtype)
  add = jax.vmap(lambda total, token, rows: total.at[token].add(rows))
  return add(zeros, kept.token.reshape(g, e * s), y.reshape(g, e * s, -1))
