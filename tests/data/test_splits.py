import numpy as np
import pytest

from softmoe.data import splits
from softmoe.errors import UserError


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
def test_indices(split, expected):
  assert splits.indices(split, 7) == expected


@pytest.mark.parametrize('percent', [1, 10, 33, 90, 99])
@pytest.mark.parametrize('size', [101, 1437, 60_000])
def test_complementary_slices_partition_the_split(percent, size):
  first = splits.indices(f'train[:{percent}%]', size)
  rest = splits.indices(f'train[{percent}%:]', size)
  assert [*first, *rest] == list(range(size))


def test_base_name():
  assert splits.base_name('validation[10%:]') == 'validation'


@pytest.mark.parametrize('split', ['train[7:]', 'train[3:3]', 'train[:0%]'])
def test_empty_slice(split):
  with pytest.raises(UserError, match='a slice with examples, of 7 in all'):
    splits.indices(split, 7)


@pytest.mark.parametrize(
  'split', ['', 'train[', 'train[1]', 'train[a:]', 'train[::2]', 'a b']
)
def test_malformed_split(split):
  with pytest.raises(UserError, match='a form such as'):
    splits.base_name(split)


def test_fixed_order_is_a_permutation_that_stays():
  order = splits.fixed_order(1797)
  np.testing.assert_array_equal(np.sort(order), np.arange(1797))
  # Other numbers would mean other training and test sets than published.
  np.testing.assert_array_equal(order[:5], [855, 921, 269, 1185, 11])
