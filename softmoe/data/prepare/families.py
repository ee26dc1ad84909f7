"""Which faces draw the same, and which are of one design.

The distance of two faces is 1 - sum(min) / sum(max) over the pixels of the
sample's characters that both have: 0 for the same ink, 1 for none in common.
"""

import re
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float64

from softmoe.data.prepare import fonts

Table = Float64[np.ndarray, 'faces faces']

SAME = 0.1  # at most this apart, two faces draw the same
RELATED = 0.25  # below this, two faces are of one design whatever their names
_LEAST = 16  # characters that two faces must share to be compared

# Designs that go by several names, or are parts of one another: (a regular
# expression that the start of a family's name matches, the design).
_DESIGNS = (
  (r'ipa|takao|monapo', 'ipa'),
  (r'm ?plus|m\+|mig(mix|u)|vl p?gothic|ricty', 'm plus'),
  (r'klee|lxgw wenkai', 'klee'),
  (r'ar pl|cwtexkai|babelstone han', 'arphic'),
  (r'aoyagi|kouzan', 'aoyagi kouzan'),
  (r'ume(plus)? ((clp?|hy|p|ui) )?gothic', 'ume gothic'),
  (r'ume (p )?mincho', 'ume mincho'),
  (r'droid sans fallback|wenquanyi micro hei', 'droid'),
  (r'un(batang|shinmun)|baekmuk batang', 'batang'),
  (r'undotum|baekmuk dotum', 'dotum'),
  (r'nanum(barun)?gothic|nanumsquare', 'nanum gothic'),
  (r'biz udp?gothic', 'biz ud gothic'),
  (r'biz udp?mincho', 'biz ud mincho'),
  (r'komatuna|konatu', 'konatu'),
  (r'kiloji', 'kiloji'),
  (r'misaki', 'misaki'),
  (r'setofont', 'setofont'),
  (r'yoz', 'yozfont'),
)
# What says no more than the region, the spacing or the weight.
_NO_DESIGN = re.compile(
  r'\b(jp|kr|sc|tc|hk|mono|code|condensed|narrow|thin|(extra|ultra|'
  r'demi|semi)?(light|bold)|regular|medium|black|heavy|oblique|italic)\b'
)


def design(family: str) -> str:
  """Returns what a family's name says of its design."""
  name = family.lower()
  for pattern, known in _DESIGNS:
    if re.match(pattern, name):
      return known
  return ' '.join(_NO_DESIGN.sub(' ', re.sub(r'[-_]', ' ', name)).split())


def distance(a: fonts.Images, b: fonts.Images) -> float:
  """Returns how far two faces' images of the same characters are apart."""
  a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
  both = a.any(1) & b.any(1)
  if both.sum() < _LEAST:
    return 1.0
  common = int(np.minimum(a[both], b[both]).sum(dtype=np.int64))
  total = int(a[both].sum(dtype=np.int64)) + int(b[both].sum(dtype=np.int64))
  return 1 - common / (total - common)


def distances(images: list[fonts.Images]) -> Table:
  """Returns the distance of each face to each."""
  table = np.zeros((len(images), len(images)))
  for i, a in enumerate(images):
    for j in range(i):
      table[i, j] = table[j, i] = distance(a, images[j])
  return table


def twins(table: Table) -> list[int]:
  """Returns for each face the first that draws the same: itself, if it is new.

  A face that is left out stands for no other.
  """
  kept: list[int] = []
  found = []
  for i, row in enumerate(table):
    first = next((k for k in kept if row[k] <= SAME), i)
    kept += [i] if first == i else []
    found.append(first)
  return found


def families(names: list[str], table: Table) -> list[str]:
  """Returns the design family of each face, called by its first design.

  Faces are of one family if their names say so, if they are less than `RELATED`
  apart, or if a chain of such faces joins them.

  Args:
    names: of the families, as the fonts name them.
    table: the distances.
  """
  designs = [design(name) for name in names]
  roots = list(range(len(names)))

  def root(i: int) -> int:
    while roots[i] != i:
      i = roots[i]
    return i

  for i, j in np.argwhere(table < RELATED).tolist():
    roots[root(max(i, j))] = root(min(i, j))
  for i, each in enumerate(designs):
    roots[root(i)] = root(designs.index(each))
  return _called([root(i) for i in range(len(names))], designs)


def _called(groups: list[int], designs: Iterable[str]) -> list[str]:
  first: dict[int, str] = {}
  for group, each in zip(groups, designs, strict=True):
    first[group] = min(each, first.get(group, each))
  return [first[group] for group in groups]
