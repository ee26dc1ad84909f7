"""Rows of varying number to the devices that own their experts, and back.

Every device has room for so many rows. What exceeds it comes in another round,
and in as many as the fullest device needs.

Runs inside `jax.shard_map`. Axes: `r` devices of the mesh axis, `n` rows of a
device, `q` rows that a device has room for, `e` experts of all devices, `d`
width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from softmoe import sharding
from softmoe.moe.execution import rounds

# Of parameters, rows sorted by expert, and the number of rows of each.
Grouped = Callable[[Any, Array, Array], Array]


class Moves(NamedTuple):
  """Which rows go from each device to each, (from, to), in one collective.

  Attributes:
    size: number of rows.
    source: the first of them, where they come from.
    target: the first of them, where they go to.
  """

  size: Int[Array, 'r r']
  source: Int[Array, 'r r']
  target: Int[Array, 'r r']

  def back(self) -> 'Moves':
    """Returns the same rows the other way."""
    return Moves(self.size.T, self.target.T, self.source.T)


def at_owners(
  grouped_fn: Grouped, axis: str, num_rows: int, max_rows: int
) -> Grouped:
  """Returns `grouped_fn` run where the experts are.

  Args:
    grouped_fn: maps parameters, rows sorted by expert, of the experts of this
      device, and the number of rows of each, to rows.
    axis: mesh axis that the experts are split over.
    num_rows: that a device has room for.
    max_rows: the most that may come to one: as many as there is room for, or
      fewer, need one round.

  Returns:
    A function of parameters, rows (n, d) sorted by expert, of all experts, and
    the number of rows of each (e,).
  """

  def run(i, floats, sizes):
    experts, rows = floats
    moves, here = _round(sizes, i * num_rows, num_rows, axis)
    inbox = ragged_all_to_all(rows, moves, num_rows, axis)
    order = _by_expert(here, num_rows)
    y = grouped_fn(experts, inbox[order], jnp.sum(here, axis=0))
    y = y[jnp.argsort(order)]
    return ragged_all_to_all(y, moves.back(), len(rows), axis)

  def apply(
    experts: Any, rows: Float[Array, 'n d'], group_sizes: Int[Array, ' e']
  ) -> Float[Array, 'n d_out']:
    devices = jax.lax.axis_size(axis)
    sizes = jax.lax.all_gather(group_sizes.reshape(devices, -1), axis)
    y = run(jnp.zeros_like(sizes[0, 0, 0]), (experts, rows), sizes)
    if num_rows >= max_rows:
      return y
    fullest = jnp.max(jnp.sum(sizes, axis=(0, 2)))
    stop = -(-fullest // num_rows)
    return rounds.add(run, y, stop, (experts, rows), sizes)

  return apply


def _round(
  sizes: Int[Array, 'r r e_local'],
  start: Int[Array, ''],
  num_rows: int,
  axis: str,
) -> tuple[Moves, Int[Array, 'r e_local']]:
  """Returns what moves in a round, and the rows that come here, by expert.

  What comes to a device stands in a queue, by device, then expert. A round
  takes the next `num_rows` of every queue.

  Args:
    sizes: rows from each device to each, by expert.
    start: the first row of each queue.
    num_rows: that a device has room for.
    axis: mesh axis.
  """
  queues = jnp.swapaxes(sizes, 0, 1)  # to, from, expert
  ends = jnp.cumsum(queues.reshape(len(queues), -1), axis=1)
  ends = ends.reshape(queues.shape)
  begin = jnp.clip(ends - queues - start, 0, num_rows)
  taken = jnp.clip(ends - start, 0, num_rows) - begin
  total = jnp.sum(sizes, axis=2)  # from, to
  first = jnp.cumsum(total, axis=1) - total
  gone = jnp.clip(start - (ends - queues)[:, :, 0].T, 0, total)
  moves = Moves(jnp.sum(taken, axis=2).T, first + gone, begin[:, :, 0].T)
  return moves, taken[jax.lax.axis_index(axis)]


def _by_expert(
  counts: Int[Array, 'r e_local'], max_rows: int
) -> Int[Array, ' q']:
  """Returns the order that sorts received rows by expert, empty ones last.

  They come by device, and by expert within each.
  """
  devices, experts = counts.shape
  ends = jnp.cumsum(counts.reshape(-1))
  part = jnp.searchsorted(ends, jnp.arange(max_rows), side='right')
  expert = jnp.where(part < devices * experts, part % experts, experts)
  return jnp.argsort(expert, stable=True)


@jax.named_scope('exchange')
def ragged_all_to_all(
  rows: Float[Array, 'n d'], moves: Moves, num_rows: int, axis: str
) -> Float[Array, 'q d']:
  """Returns the rows that the devices of `axis` sent here.

  Args:
    rows: of this device.
    moves: the same on all devices; parts do not overlap.
    num_rows: size of the result, 0 where nothing came.
    axis: mesh axis.
  """
  me = jax.lax.axis_index(axis)
  if sharding.platform() == 'cpu':  # XLA has no such collective there
    return _gathered(rows, [v[:, me] for v in moves], num_rows, axis)
  empty = jnp.zeros_like(rows, shape=(num_rows, rows.shape[1]))
  return jax.lax.ragged_all_to_all(
    rows,
    empty,
    moves.source[me],
    moves.size[me],
    moves.target[me],
    moves.size[:, me],
    axis_name=axis,
  )


def _gathered(
  rows: Float[Array, 'n d'],
  here: list[Int[Array, ' r']],
  num_rows: int,
  axis: str,
) -> Float[Array, 'q d']:
  """Does the same by giving all rows to all devices, which pick theirs."""
  everything = jax.lax.all_gather(rows, axis, tiled=True)
  size, source, target = (v[None] for v in here)
  slot = jnp.arange(num_rows)[:, None]
  inside = (target <= slot) & (slot < target + size)
  sender = jnp.argmax(inside, axis=1)
  shift = len(rows) * sender + (source - target)[0, sender]
  real = jnp.any(inside, axis=1)
  picked = everything[jnp.where(real, shift + slot[:, 0], 0)]
  return jnp.where(real[:, None], picked, 0)
