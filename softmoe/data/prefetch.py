"""Which rows of a batch a process reads, and placing them on its devices."""

import collections
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax import P
from jaxtyping import Integer

from softmoe.errors import UserError


def local_rows(
  mesh: jax.sharding.Mesh,
  batch_size: int,
  devices: Sequence[jax.Device] | None = None,
) -> Integer[np.ndarray, ' n']:
  """Returns which rows of a global batch are on this process's devices.

  They need not be one block: a mesh may order the devices of several processes
  as suits their wires.

  Args:
    mesh: the devices, of all processes.
    batch_size: rows of the global batch.
    devices: those to look at; None: this process's.

  Returns:
    The rows in ascending order.

  Raises:
    UserError: the devices do not divide the global batch.
  """
  if batch_size % mesh.size:
    expected = f'a multiple of the {mesh.size} devices'
    raise UserError('batch size', batch_size, expected)
  places = _sharding(mesh).devices_indices_map((batch_size,))
  owned = mesh.local_devices if devices is None else devices
  blocks = [np.arange(batch_size)[places[device]] for device in owned]
  return np.unique(np.concatenate(blocks))


def check_memory(
  field: str, batch: dict[str, jax.ShapeDtypeStruct], mesh: jax.sharding.Mesh
) -> None:
  """Raises a UserError if this host is too small for its part of a batch.

  Args:
    field: of the config, which says the size of the batch.
    batch: the shapes and types of the global batch.
    mesh: the devices, of all processes.
  """
  whole = sum(math.prod(x.shape) * x.dtype.itemsize for x in batch.values())
  needed = whole * len(mesh.local_devices) // mesh.size
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  if needed > memory:
    size = len(next(iter(batch.values())))
    raise UserError(
      field,
      size,
      f'less: a batch takes {needed >> 30:,} GiB here, of {memory >> 30:,}',
    )


def to_devices(
  batches: Iterable[dict[str, np.ndarray]], mesh: jax.sharding.Mesh, size: int
) -> Iterator[dict[str, jax.Array]]:
  """Yields global arrays, with `size` more batches already on their way.

  The batch axis is split over all axes of the mesh, the other axes are whole on
  each device. A copy to a device does not block, so it happens while the
  device computes.

  Args:
    batches: this process's `local_rows` of each global batch.
    mesh: the devices, of all processes.
    size: number of batches in flight beyond the one that is yielded.

  Raises:
    UserError: the devices do not divide the global batch.
  """
  queue = collections.deque()
  for batch in batches:
    queue.append(_place(batch, mesh))
    if len(queue) > size:
      yield queue.popleft()
  yield from queue


def _place(
  batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh
) -> dict[str, jax.Array]:
  part = len(next(iter(batch.values())))
  batch_size = part * mesh.size // len(mesh.local_devices)
  rows = local_rows(mesh, batch_size)

  def place(array: np.ndarray) -> jax.Array:
    def shard(index: Any) -> np.ndarray:
      start, stop, _ = index[0].indices(batch_size)
      first = np.searchsorted(rows, start)
      return array[first : first + stop - start]

    shape = (batch_size, *array.shape[1:])
    return jax.make_array_from_callback(shape, _sharding(mesh), shard)

  return {name: place(array) for name, array in batch.items()}


def _sharding(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
  return jax.NamedSharding(mesh, P(mesh.axis_names))
