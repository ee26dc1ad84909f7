import numpy as np
import pytest

from softmoe.data import splits
from softmoe.data.images import source as source_lib
from softmoe.errors import UserError


def _source(size):
  images = np.zeros((size, 1, 1), np.uint8)
  return source_lib.ArraySource(images, np.arange(size))


def _labels(split, size=7):
  taken = splits.take(_source(size), split)
  return [taken[i]['label'] for i in range(len(taken))]


@pytest.mark.parametrize(
  ('split', 'expected'),
  [
    ('train', range(7)),
    ('train[:]', range(7)),
    ('train[:2]', range(2)),
    ('train[2:]', range(2, 7)),
    ('train[2:4]', range(2, 4)),
    ('train[-2:]', range(5, 7)),
    ('train[:-2]', range(5)),
    ('train[:50%]', range(4)),  # 3.5 rounds to the even 4
    ('train[50%:]', range(4, 7)),
    ('train[-50%:]', range(3, 7)),
    ('train[:1000]', range(7)),
    ('train[1:90%]', range(1, 6)),
  ],
)
def test_take(split, expected):
  assert _labels(split) == list(expected)


@pytest.mark.parametrize('percent', [1, 10, 33, 90, 99])
@pytest.mark.parametrize('size', [101, 1437, 60_000])
def test_complementary_slices_partition_the_split(percent, size):
  first = splits.take(_source(size), f'train[:{percent}%]')
  rest = splits.take(_source(size), f'train[{percent}%:]')
  assert len(first) + len(rest) == size
  assert first[len(first) - 1]['label'] + 1 == rest[0]['label']


def test_base_name():
  assert splits.base_name('validation[10%:]') == 'validation'


@pytest.mark.parametrize('split', ['train[7:]', 'train[3:3]', 'train[:0%]'])
def test_empty_slice(split):
  with pytest.raises(UserError, match='a slice with examples, of 7 in all'):
    splits.take(_source(7), split)


@pytest.mark.parametrize(
  'split', ['', 'train[', 'train[1]', 'train[a:]', 'train[::2]', 'a b']
)
def test_malformed_split(split):
  with pytest.raises(UserError, match='a form such as'):
    splits.base_name(split)


def test_subset_passes_on_what_its_source_knows():
  whole = source_lib.ArraySource(
    np.zeros((5, 1, 1), np.uint8), np.arange(5), num_classes=9
  )
  subset = splits.take(whole, 'train[2:4]')
  assert subset.num_classes == 9
  np.testing.assert_array_equal(subset.labels, [2, 3])
