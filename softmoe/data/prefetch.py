"""Placing host batches on the devices ahead of their use."""

import collections
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax import P

from softmoe.errors import UserError


def to_devices(
  batches: Iterable[dict[str, np.ndarray]], mesh: jax.sharding.Mesh, size: int
) -> Iterator[dict[str, jax.Array]]:
  """Yields global arrays, with `size` more batches already on their way.

  The batch axis is split over all axes of the mesh, the other axes are whole on
  each device. A copy to a device does not block, so it happens while the
  device computes.

  Args:
    batches: this process's rows of each global batch.
    mesh: the devices, of all processes.
    size: number of batches in flight beyond the one that is yielded.

  Raises:
    UserError: the devices do not divide the global batch.
  """
  sharding = jax.NamedSharding(mesh, P(mesh.axis_names))
  queue = collections.deque()
  for batch in batches:
    queue.append(_place(batch, sharding))
    if len(queue) > size:
      yield queue.popleft()
  yield from queue


def _place(
  batch: dict[str, np.ndarray], sharding: jax.NamedSharding
) -> dict[str, jax.Array]:
  devices = sharding.mesh.size
  rows = len(next(iter(batch.values()))) * jax.process_count()
  if rows % devices:
    raise UserError('batch size', rows, f'a multiple of the {devices} devices')
  return {
    name: jax.make_array_from_process_local_data(sharding, array)
    for name, array in batch.items()
  }
