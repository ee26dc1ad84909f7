import numpy as np
import pytest

from softmoe.data.prepare import families, selection
from softmoe.errors import UserError


@pytest.mark.parametrize(
  'family, design',
  [
    ('Noto Sans CJK JP', 'noto sans cjk'),
    ('Noto Sans Mono CJK TC', 'noto sans cjk'),
    ('TakaoPGothic', 'ipa'),
    ('MigMix 1M', 'm plus'),
    ('LXGW WenKai Mono', 'klee'),
    ('UmePlus CLP Gothic', 'ume gothic'),
    ('Ume P Mincho S3', 'ume mincho'),
    ('TW-Kai', 'tw kai'),
    ('Stick', 'stick'),
  ],
)
def test_design_of_a_name(family, design):
  assert families.design(family) == design


def faces(*ink):
  """Returns faces of 20 equal characters with so many columns of ink."""
  images = np.zeros((len(ink), 20, 32, 32), np.uint8)
  for image, columns in zip(images, ink, strict=True):
    image[..., :columns] = 200
  return list(images)


def test_distance_is_the_ink_that_is_not_common():
  a, b = faces(10, 16)
  assert families.distance(a, a) == 0
  assert families.distance(a, b) == pytest.approx(6 / 16)
  b[5:] = 0  # too few characters that both have
  assert families.distance(a, b) == 1


def test_a_twin_stands_for_no_other():
  table = families.distances(faces(30, 28, 26, 10))
  assert table[1, 2] < families.SAME < table[0, 2]
  assert families.twins(table) == [0, 0, 2, 3]


def test_families_are_joined_by_name_or_by_likeness():
  table = np.ones((5, 5))
  np.fill_diagonal(table, 0)
  table[0, 3] = table[3, 0] = 0.2
  names = ['Alpha', 'Beta Light', 'Beta Black', 'Derived', 'Other']
  found = families.families(names, table)
  assert found == ['alpha', 'beta', 'beta', 'alpha', 'other']


def test_held_out_are_whole_families_of_an_eighth_at_most():
  named = ['big'] * 20 + ['a', 'a', 'b', 'c', 'd']
  held_out = selection.hold_out(named)
  assert held_out and 'big' not in held_out
  assert sum(name in held_out for name in named) <= 3
  assert selection.hold_out(named[::-1]) == held_out
  with pytest.raises(UserError, match='design families: got 1'):
    selection.hold_out(['a', 'a'])
