"""A sum of rounds, as many as the data need, in the memory of one.

The backward pass runs each round after the first again, since it cannot know
beforehand how many there are to remember. They are half as large, so that what
comes with a loop needs no more memory than the first.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from softmoe.moe.execution import floats as floats_lib

# What the loop over the rounds after the first is called in a program.
_SCOPE = 'rounds_{}_to_{}'
_LOOP = re.compile(r'\brounds_(\d+)_to_(\d+)\b\)*(/while)?$')


class Room(NamedTuple):
  """How many rows there is room for.

  Attributes:
    first: in the first round.
    even: rows of an even load.
    most: the most rows that there may be.
  """

  first: int
  even: int
  most: int

  @property
  def more(self) -> int:
    """Returns the rows of a round after the first."""
    return -(-self.first // 2)

  def needed(self, rows: Int[Array, '']) -> Int[Array, '']:
    """Returns the rounds that so many rows take, at least one."""
    return 1 + jnp.maximum(-((self.first - rows) // self.more), 0)

  def name(self) -> str:
    """Returns what a loop is called, the rounds of an even load first."""
    further = lambda rows: max(-((self.first - rows) // self.more), 0)
    return _SCOPE.format(1 + further(self.even), 1 + further(self.most))


def room(factor: float, even: int, most: int) -> Room:
  """Returns room for `factor` times an even load, or for all that may come."""
  return Room(min(math.ceil(factor * even), most), even, most)


def counts(name: str) -> tuple[int, int] | None:
  """Returns the rounds of an even load, and the most; None: it is no such loop.

  Args:
    name: of a loop in a program, traced or compiled.
  """
  found = _LOOP.search(name)
  return (int(found[1]), int(found[2])) if found else None


def total(
  fn: Callable[[Array, int, Any], Array],
  room: Room,
  rows: Int[Array, ''],
  arguments: Any,
  cast: Callable[[Any], Any] = lambda arguments: arguments,
) -> Float[Array, '*s']:
  """Returns the sum of what `fn` returns for the rounds that rows take.

  Inside `jax.shard_map` all arrays must vary over the same axes.

  Args:
    fn: maps the first row of a round, the number of its rows and the arguments
      to a summand. What it reads comes with the arguments.
    room: for rows in a round.
    rows: how many there are.
    arguments: pytree of arrays.
    cast: returns them in the types that `fn` computes in, as `fn` does itself.
      A loop has arrays of its own, which then are no larger than they need be.
  """
  if room.first >= room.most:
    return fn(jnp.zeros_like(rows), room.first, arguments)
  floats, others, join = floats_lib.split(arguments)

  def one(start, num_rows, floats, others):
    return fn(start, num_rows, join(floats, others))

  def ready(floats, others):
    return floats_lib.split(cast(join(floats, others)))[0]

  return _total(one, ready, room, rows, floats, others)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _total(fn, ready, room, rows, floats, others):
  y = fn(jnp.zeros_like(rows), room.first, floats, others)
  return _add(fn, ready, room, y, rows, floats, others)


def _add(fn, ready, room, y, rows, floats, others):
  """Adds the rounds after the first to y."""
  floats = ready(floats, others)
  more = lambda start, y: y + fn(start, room.more, floats, others)
  return _each(room, rows, more, y)


def _each(
  room: Room, rows: Int[Array, ''], more: Callable[..., Any], state: Any
) -> Any:
  step = lambda carry: (carry[0] + room.more, more(*carry))
  first = jnp.full_like(rows, room.first), state
  with jax.named_scope(room.name()):
    return jax.lax.while_loop(lambda carry: carry[0] < rows, step, first)[1]


def _forward(fn, ready, room, rows, floats, others):
  first = lambda floats: fn(jnp.zeros_like(rows), room.first, floats, others)
  y, pull = jax.vjp(first, floats)
  y = _add(fn, ready, room, y, rows, floats, others)
  return y, (rows, floats, others, pull)


def _backward(fn, ready, room, residuals, dy):
  """Adds to the gradients of the first round those of the others."""
  rows, floats, others, pull_first = residuals
  as_read = ready(floats, others)

  def more(start, gradients):
    one = lambda floats: fn(start, room.more, floats, others)
    pull = jax.vjp(one, as_read)[1]
    return jax.tree.map(lambda a, b: a + b, gradients, pull(dy)[0])

  wide = lambda g: g.astype(jnp.float32)
  gradients = _each(room, rows, more, jax.tree.map(wide, pull_first(dy)[0]))
  cast = lambda g, a: g.astype(a.dtype)
  return None, jax.tree.map(cast, gradients, floats), None


_total.defvjp(_forward, _backward)
