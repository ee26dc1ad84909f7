import dataclasses

import numpy as np
import pytest

from softmoe.data.images import source as source_lib
from softmoe.errors import UserError


@dataclasses.dataclass(frozen=True)
class _LazySource:
  """Labels that are known only once an example is read."""

  values: tuple[int, ...]
  num_classes: int | None = None
  labels: None = None

  def __len__(self):
    return len(self.values)

  def __getitem__(self, index):
    image = np.zeros((1, 1, 1), np.uint8)
    return {'image': image, 'label': self.values[index]}


def _in_memory(*labels):
  images = np.zeros((len(labels), 2, 3), np.uint8)
  return source_lib.ArraySource(images, np.array(labels))


def test_grey_arrays_get_a_channel_axis():
  assert _in_memory(0)[0]['image'].shape == (2, 3, 1)


@pytest.mark.parametrize('wrong', [10, -1])
def test_known_labels_are_checked_at_once(wrong):
  expected = rf'example 2: got {wrong}; .*num_classes asks for 0 to 9'
  with pytest.raises(UserError, match=expected):
    source_lib.LabelCheck(_in_memory(0, 9, wrong), 10)


@pytest.mark.parametrize('wrong', [10, -1])
def test_other_labels_are_checked_when_read(wrong):
  checked = source_lib.LabelCheck(_LazySource((0, 9, wrong)), 10)
  assert [checked[0]['label'], checked[1]['label']] == [0, 9]
  with pytest.raises(UserError, match=f'example 2: got {wrong}'):
    checked[2]


def test_more_classes_than_the_config_has():
  with pytest.raises(
    UserError, match='config.data.num_classes: got 10; at least 11'
  ):
    source_lib.LabelCheck(_LazySource((0,), num_classes=11), 10)
  source_lib.LabelCheck(_LazySource((0,), num_classes=10), 10)


def test_subset_passes_on_what_its_source_knows():
  images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1)
  whole = source_lib.ArraySource(images, np.arange(5), num_classes=9)
  subset = source_lib.Selection(whole, range(2, 4))
  assert (len(subset), subset.num_classes) == (2, 9)
  np.testing.assert_array_equal(subset.labels, [2, 3])
  assert [subset[i]['label'] for i in range(2)] == [2, 3]
  assert subset[1]['image'].item() == 3


def test_subset_of_a_source_that_knows_nothing():
  subset = source_lib.Selection(_LazySource((4, 5, 6)), range(1, 3))
  assert (subset.num_classes, subset.labels) == (None, None)
  assert subset[1]['label'] == 6


def test_images_without_pixels_are_refused():
  images = np.zeros((2, 0, 8), np.uint8)
  with pytest.raises(UserError, match='config.data.source.*have pixels'):
    source_lib.ArraySource(images, np.arange(2))
