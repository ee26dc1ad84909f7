"""Which examples are looked at: of every class, whatever their order."""

import numpy as np
import pytest

from softmoe.tasks import classification, examples


@pytest.fixture
def task(tiny, tmp_path):
  """Returns a function that makes a task of images, class after class."""

  def make(count, classes):
    labels = np.arange(count) * classes // count
    images = np.broadcast_to(labels[:, None, None], (count, 8, 8))
    arrays = {'test_images': images.astype(np.uint8), 'test_labels': labels}
    np.savez(tmp_path / 'data.npz', **arrays)
    source = dict(data__source=f'npz:{tmp_path}/data.npz', data__num_classes=10)
    return classification.Classification(tiny('vit', **source))

  return make


@pytest.mark.parametrize(
  ('size', 'count'),
  [(1000, 64), (1024, 64), (1025, 64), (1000, 600), (1025, 600), (1001, 1000)],
)
def test_every_class_of_a_sorted_source_is_seen(task, size, count):
  found = examples.read(task(size, 10), 'test', count, 1)
  labels = found['label'][found['mask'] > 0]
  assert count * 63 // 64 <= len(labels) <= count
  counts = np.bincount(labels, minlength=10)
  assert counts.max() - counts.min() <= 1 + (count > 64)


@pytest.mark.parametrize('count', [40, 48, 64])
def test_all_of_few_are_taken_in_order(task, count):
  found = examples.read(task(40, 10), 'test', count, 8)
  np.testing.assert_array_equal(found['mask'], np.arange(count) < 40)
  np.testing.assert_array_equal(found['label'][:40], np.arange(40) // 4)


@pytest.mark.parametrize('size', [1, 2, 3])
def test_a_tiny_split_is_read(task, size):
  found = examples.read(task(size, 1), 'test', 8)
  assert found['mask'].sum() == size


def test_batches_hold_every_example_once(task):
  found = examples.read(task(40, 10), 'test', 64)
  first, last = examples.cut(found, 24)
  assert first['mask'].all()
  np.testing.assert_array_equal(last['mask'], np.arange(24) < 16)
  labels = np.concatenate([first['label'], last['label'][:16]])
  np.testing.assert_array_equal(labels, np.arange(40) // 4)


def test_neighbours_stay_together(task):
  found = examples.read(task(512, 4), 'test[:511]', 16, 4)
  np.testing.assert_array_equal(found['label'], np.repeat([0, 1, 2, 3], 4))
