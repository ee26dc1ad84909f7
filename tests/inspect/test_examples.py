"""Which examples are looked at: of every class, whatever their order."""

import numpy as np
import pytest

from softmoe.inspect import examples
from softmoe.tasks import classification


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
  ('size', 'least'), [(1000, 62), (1024, 64), (1025, 32)]
)
def test_every_class_of_a_sorted_source_is_seen(task, size, least):
  found = examples.read(task(size, 10), 'test', 64, 1)
  labels = found['label'][found['mask'] > 0]
  assert least <= len(labels) <= 64
  counts = np.bincount(labels, minlength=10)
  assert counts.max() - counts.min() <= 1


def test_all_of_few_are_taken_in_order(task):
  found = examples.read(task(40, 10), 'test', 64, 8)
  np.testing.assert_array_equal(found['mask'], np.arange(64) < 40)
  np.testing.assert_array_equal(found['label'][:40], np.arange(40) // 4)


def test_neighbours_stay_together(task):
  found = examples.read(task(512, 4), 'test[:511]', 16, 4)
  np.testing.assert_array_equal(found['label'], np.repeat([0, 1, 2, 3], 4))
