"""Rows of varying number to the devices that own their experts, and back.

Runs inside `jax.shard_map`. Axes: `r` devices of the mesh axis, `n` rows of a
device, `q` rows that a device has room for, `e` experts of all devices, `d`
width.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, Shaped

from softmoe import sharding

# What `jax.checkpoint` policies call that which came from other devices.
EXCHANGED = 'exchanged'


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


def arrived(x: Shaped[Array, '*s']) -> Shaped[Array, '*s']:
  """Returns what came from other devices, by the name that `remat` keeps."""
  return checkpoint_name(x, EXCHANGED)


def gather_sizes(
  group_sizes: Int[Array, ' e'], axis: str
) -> Int[Array, 'r r e_local']:
  """Returns the rows from each device to each, by expert.

  Args:
    group_sizes: rows of this device for each expert.
    axis: mesh axis that the experts are split over.
  """
  to = group_sizes.reshape(jax.lax.axis_size(axis), -1)
  return arrived(jax.lax.all_gather(to, axis))


def fullest(sizes: Int[Array, 'r r e_local']) -> Int[Array, '']:
  """Returns the rows that come to the device that gets most."""
  return jnp.max(jnp.sum(sizes, axis=(0, 2)))


def at_owners(
  grouped_fn: Callable[[Array, Array], Array],
  rows: Float[Array, 'n d'],
  sizes: Int[Array, 'r r e_local'],
  start: Int[Array, ''],
  num_rows: int,
  axis: str,
) -> Float[Array, 'n d_out']:
  """Returns what experts make of rows, where they are; 0 of those left out.

  What comes to a device stands in a queue, by device, then expert.

  Args:
    grouped_fn: maps rows sorted by expert, of the experts of this device, and
      the number of rows of each, to rows.
    rows: sorted by expert, of all experts.
    sizes: how many these are on all devices; see `gather_sizes`.
    start: the first row of each queue that is worked on.
    num_rows: how many of each queue are; a device has room for them.
    axis: mesh axis that the experts are split over.
  """
  moves, here = _take(sizes, start, num_rows, axis)
  inbox = arrived(ragged_all_to_all(rows, moves, num_rows, axis))
  order = _by_expert(here, num_rows)
  y = grouped_fn(inbox[order], jnp.sum(here, axis=0))
  y = y[jnp.argsort(order)]
  return arrived(ragged_all_to_all(y, moves.back(), len(rows), axis))


def _take(
  sizes: Int[Array, 'r r e_local'],
  start: Int[Array, ''],
  num_rows: int,
  axis: str,
) -> tuple[Moves, Int[Array, 'r e_local']]:
  """Returns what moves, and the rows that come here, by device and expert."""
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
