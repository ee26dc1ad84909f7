import os

import jax
import numpy as np
import pytest
from jax import P

from softmoe.data import prefetch
from softmoe.errors import UserError


def _batches(count, rows=16):
  for i in range(count):
    image = np.full((rows, 2, 3), i, np.float32)
    yield {'image': image, 'label': np.arange(rows) + i}


def _mesh(shape=(2, 4)):
  return jax.make_mesh(shape, ('data', 'expert'))


@pytest.mark.parametrize('shape', [(2, 4), (8, 1)])
@pytest.mark.parametrize('size', [0, 1, 2, 9])
def test_batches_arrive_whole_and_in_order(shape, size):
  placed = list(prefetch.to_devices(_batches(5), _mesh(shape), size))
  assert len(placed) == 5
  for batch, expected in zip(placed, _batches(5), strict=True):
    for name in expected:
      np.testing.assert_array_equal(batch[name], expected[name])


def test_the_batch_axis_is_split_over_every_device():
  mesh = _mesh()
  (batch,) = prefetch.to_devices(_batches(1), mesh, 2)
  expected = jax.NamedSharding(mesh, P(('data', 'expert')))
  for array in batch.values():
    assert array.sharding.is_equivalent_to(expected, array.ndim)
    assert len(array.addressable_shards) == 8
    assert array.addressable_shards[0].data.shape == (2, *array.shape[1:])


@pytest.mark.parametrize('dtype', ['uint8', 'int16', 'float32', 'bool'])
def test_arrays_keep_their_types(dtype):
  values = np.arange(32).reshape(16, 2).astype(dtype)
  (placed,) = prefetch.to_devices([{'x': values}], _mesh(), 0)
  assert placed['x'].dtype == dtype
  np.testing.assert_array_equal(placed['x'], values)


@pytest.mark.parametrize('size', [0, 1, 3])
def test_it_stays_ahead_by_size(size):
  read = []

  def batches():
    for i, batch in enumerate(_batches(10)):
      read.append(i)
      yield batch

  iterator = prefetch.to_devices(batches(), _mesh(), size)
  for consumed in range(1, 5):
    next(iterator)
    assert len(read) == consumed + size


def _permuted_mesh():
  """A mesh whose order of devices is not that of their numbers."""
  devices = np.array(jax.devices())[[5, 0, 3, 6, 1, 4, 7, 2]].reshape(2, 4)
  return jax.sharding.Mesh(devices, ('data', 'expert'))


@pytest.mark.parametrize('mesh', [_mesh(), _permuted_mesh()])
def test_rows_are_those_of_the_devices(mesh):
  batch = {'row': np.arange(16)}
  (placed,) = prefetch.to_devices([batch], mesh, 1)
  for shard in placed['row'].addressable_shards:
    rows = prefetch.local_rows(mesh, 16, [shard.device])
    np.testing.assert_array_equal(shard.data, rows)


def test_the_rows_of_all_processes_are_the_batch():
  # As if devices 0 to 3 were of one process and 4 to 7 of another.
  mesh, devices = _permuted_mesh(), jax.devices()
  first = prefetch.local_rows(mesh, 16, devices[:4])
  second = prefetch.local_rows(mesh, 16, devices[4:])
  np.testing.assert_array_equal(first, [2, 3, 4, 5, 8, 9, 14, 15])
  np.testing.assert_array_equal(second, [0, 1, 6, 7, 10, 11, 12, 13])
  np.testing.assert_array_equal(prefetch.local_rows(mesh, 16), np.arange(16))


def test_a_batch_is_at_most_the_memory_of_the_host():
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  check = lambda size: prefetch.check_memory(
    'config.data.batch_size',
    {'image': jax.ShapeDtypeStruct((size, memory // 2**10), np.uint8)},
    _mesh(),
  )
  check(2**10)
  given = 'config.data.batch_size: got 2048; less: a batch takes [0-9,]+ GiB'
  with pytest.raises(UserError, match=f'{given} here, of {memory >> 30:,}$'):
    check(2**11)


def test_rows_must_suit_the_devices():
  with pytest.raises(UserError, match='got 12; a multiple of the 8 devices'):
    next(prefetch.to_devices(_batches(1, rows=12), _mesh(), 1))
