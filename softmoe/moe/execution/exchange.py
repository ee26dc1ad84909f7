"""Rows of varying number to the devices that own their experts, and back.

Runs inside `jax.shard_map`. Axes: `r` devices of the mesh axis, `n` rows of a
device, `q` rows that a device has room for, `e` experts of all devices, `d`
width.
"""

from collections.abc import Callable

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from softmoe import sharding

Grouped = Callable[[Array, Array], Array]


def at_owners(grouped_fn: Grouped, axis: str, max_rows: int) -> Grouped:
  """Returns `grouped_fn` run where the experts are.

  Args:
    grouped_fn: maps rows sorted by expert, of the experts of this device, and
      the number of rows of each, to rows.
    axis: mesh axis that the experts are split over.
    max_rows: rows that a device has room for.

  Returns:
    A function of rows (n, d) sorted by expert, of all experts, and the number
    of rows of each (e,).
  """

  def apply(
    rows: Float[Array, 'n d'], group_sizes: Int[Array, ' e']
  ) -> Float[Array, 'n d_out']:
    devices = jax.lax.axis_size(axis)
    here = group_sizes.reshape(devices, -1)  # by device, then expert
    come = jax.lax.all_to_all(here, axis, 0, 0, tiled=True)
    sent, received = jnp.sum(here, axis=1), jnp.sum(come, axis=1)
    inbox = ragged_all_to_all(rows, sent, received, max_rows, axis)
    order = _by_expert(come, max_rows)
    y = grouped_fn(inbox[order], jnp.sum(come, axis=0))
    y = y[jnp.argsort(order)]
    return ragged_all_to_all(y, received, sent, len(rows), axis)

  return apply


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
  rows: Float[Array, 'n d'],
  sent: Int[Array, ' r'],
  received: Int[Array, ' r'],
  max_rows: int,
  axis: str,
) -> Float[Array, 'q d']:
  """Returns the rows that the devices of `axis` sent here, one after another.

  Args:
    rows: those for device 0 first, then those for device 1, and so on.
    sent: number of rows for each device.
    received: number of rows from each device.
    max_rows: size of the result, whose rest is 0.
    axis: mesh axis.
  """
  sizes = jax.lax.all_gather(sent, axis)  # (from, to)
  start = _starts(sent)
  if sharding.platform() == 'cpu':  # XLA has no such collective there
    return _gathered(rows, sizes, received, max_rows, axis)
  # Where on its target the rows of this device begin.
  me = jax.lax.axis_index(axis)
  target = jnp.cumsum(sizes, axis=0)[me] - sizes[me]
  empty = jnp.zeros_like(rows, shape=(max_rows, rows.shape[1]))
  return jax.lax.ragged_all_to_all(
    rows, empty, start, sent, target, received, axis_name=axis
  )


def _gathered(
  rows: Float[Array, 'n d'],
  sizes: Int[Array, 'r r'],
  received: Int[Array, ' r'],
  max_rows: int,
  axis: str,
) -> Float[Array, 'q d']:
  """Does the same by giving all rows to all devices, which pick theirs."""
  everything = jax.lax.all_gather(rows, axis, tiled=True)
  slot = jnp.arange(max_rows)
  source = jnp.searchsorted(jnp.cumsum(received), slot, side='right')
  real = source < len(received)
  source = jnp.minimum(source, len(received) - 1)
  me = jax.lax.axis_index(axis)
  begin = jax.vmap(_starts)(sizes)[:, me]  # of my rows on each device
  index = source * len(rows) + begin[source] + slot - _starts(received)[source]
  picked = everything[jnp.where(real, index, 0)]
  return jnp.where(real[:, None], picked, 0)


def _starts(sizes: Int[Array, ' r']) -> Int[Array, ' r']:
  return jnp.cumsum(sizes) - sizes
