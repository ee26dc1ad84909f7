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


def test_rows_must_suit_the_devices():
  with pytest.raises(UserError, match='got 12; a multiple of the 8 devices'):
    next(prefetch.to_devices(_batches(1, rows=12), _mesh(), 1))
