"""Which faces are drawn, and which of them no training sees."""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from softmoe.data.prepare import chance, families, fonts, workers
from softmoe.data.prepare.pairs import Kept, Recipe
from softmoe.errors import UserError

_SHARE = 8  # one in so many faces is held out, in whole families
_PACKAGES = 'fonts-noto-cjk fonts-ipafont fonts-vlgothic fonts-klee'


class Same(NamedTuple):
  """A face that is left out, since another draws the same."""

  face: fonts.Face
  kept: str
  distance: float


@dataclasses.dataclass(frozen=True)
class Choice:
  """The faces to draw, in order, and those that draw the same as one."""

  kept: list[Kept]
  same: list[Same]


def choose(files: Iterable[str], recipe: Recipe, processes: int) -> Choice:
  """Returns the distinct faces of some font files.

  Raises:
    UserError: too few faces draw enough of the characters.
  """
  work = functools.partial(_sample, sample=recipe.sample)
  found = workers.each(work, sorted(set(files)), processes)
  least = recipe.coverage * len(recipe.sample)
  # One of each, since a file may be in two folders.
  each = {sampled.face: sampled for sampled in itertools.chain(*found)}
  pool = [sampled for sampled in each.values() if sampled.number >= least]
  # The more a face draws, the sooner: so that it stands for the others.
  pool.sort(key=lambda s: (-s.number, s.face))
  if not pool:
    expected = f'fonts with the characters: apt-get install {_PACKAGES}'
    raise UserError('fonts', 'none', f'{expected}; docs/glyphs.md has them all')
  return _choice(pool)


class _Sampled(NamedTuple):
  face: fonts.Face
  images: fonts.Images
  number: int  # of characters that it draws


def _sample(path: str, sample: str) -> list[_Sampled]:
  faces = fonts.faces(path)
  drawn = ((face, fonts.draw(face, sample, sample)) for face in faces)
  return [
    _Sampled(face, images, int(images.any((1, 2)).sum()))
    for face, images in drawn
  ]


def _choice(pool: list[_Sampled]) -> Choice:
  table = _distances([each.images for each in pool])
  firsts = families.twins(table)
  named = families.families([each.face.family for each in pool], table)
  chosen = [i for i, first in enumerate(firsts) if i == first]
  held_out = hold_out([named[i] for i in chosen])
  training = [i for i in chosen if named[i] not in held_out]
  names = dict(zip(chosen, _names([pool[i].face for i in chosen]), strict=True))

  def keep(i: int) -> Kept:
    near = min(training, key=lambda j: table[i, j])
    held = named[i] in held_out
    nearest = (names[near], float(table[i, near])) if held else None
    return Kept(pool[i].face, names[i], named[i], held, nearest)

  same = [
    Same(each.face, names[first], float(table[i, first]))
    for i, (each, first) in enumerate(zip(pool, firsts, strict=True))
    if i != first
  ]
  return Choice([keep(i) for i in sorted(chosen, key=names.__getitem__)], same)


def hold_out(named: list[str]) -> set[str]:
  """Returns the families that no training sees, given that of each face.

  They come in an order of chance, each that still fits in an eighth of the
  faces.

  Raises:
    UserError: there is none of that size.
  """
  limit = max(len(named) // _SHARE, 1)
  sizes = collections.Counter(named)
  found: set[str] = set()
  for family in sorted(sizes, key=lambda name: chance.share(f'family {name}')):
    if sum(sizes[each] for each in found) + sizes[family] <= limit:
      found.add(family)
  if not found or len(found) == len(sizes):
    expected = 'more, so that some can be held out: docs/glyphs.md names them'
    raise UserError('design families', len(sizes), expected)
  return found


def _distances(
  images: list[fonts.Images],
) -> families.Table:
  """Returns the distances of faces, of which many are exact copies."""
  contents = [each.tobytes() for each in images]
  first = {content: i for i, content in reversed(list(enumerate(contents)))}
  distinct = sorted(first.values())
  table = families.distances([images[i] for i in distinct])
  where = [distinct.index(first[content]) for content in contents]
  return table[np.ix_(where, where)]


def _names(faces: list[fonts.Face]) -> list[str]:
  """Returns a name of each face that no other has."""
  seen: collections.Counter[str] = collections.Counter()
  names = {}
  for face in sorted(faces):
    seen[face.name] += 1
    number = seen[face.name]
    names[face] = face.name if number == 1 else f'{face.name} ({number})'
  return [names[face] for face in faces]
