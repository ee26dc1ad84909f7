"""A sum of rounds, as many as the data need, in the memory of one.

The backward pass runs each round again, since it cannot know beforehand how
many there are to remember.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

# What the loop over the rounds after the first is called in a program: at an
# even load it does not turn.
SCOPE = 'more_rounds'


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def add(
  fn: Callable[..., Array],
  y: Float[Array, '*s'],
  stop: Int[Array, ''],
  arguments: Any,
  others: Any,
) -> Float[Array, '*s']:
  """Returns y + fn(1, arguments, others) + ... + fn(stop - 1, ...).

  Inside `jax.shard_map` all arrays must vary over the same axes.

  Args:
    fn: returns the summand of a round, of y's shape and type.
    y: that of round 0.
    stop: one past the last round.
    arguments: pytree of float arrays.
    others: pytree of arrays without a gradient.
  """
  more = lambda i, y: y + fn(i, arguments, others)
  return _each(stop, more, y)


def _each(stop: Int[Array, ''], more: Callable[..., Any], state: Any) -> Any:
  step = lambda carry: (carry[0] + 1, more(*carry))
  first = jnp.ones_like(stop), state
  with jax.named_scope(SCOPE):
    return jax.lax.while_loop(lambda carry: carry[0] < stop, step, first)[1]


def _forward(fn, y, stop, arguments, others):
  return add(fn, y, stop, arguments, others), (stop, arguments, others)


def _backward(fn, residuals, dy):
  stop, arguments, others = residuals

  def more(i, gradients):
    pull = jax.vjp(lambda a: fn(i, a, others), arguments)[1]
    return jax.tree.map(lambda a, b: a + b, gradients, pull(dy)[0])

  zeros = lambda a: jnp.zeros_like(a, dtype=jnp.float32)
  gradients = _each(stop, more, jax.tree.map(zeros, arguments))
  cast = lambda g, a: g.astype(a.dtype)
  return dy, None, jax.tree.map(cast, gradients, arguments), None


add.defvjp(_forward, _backward)
