"""Which pairs of a character and a face are in which split."""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from softmoe.data import splits
from softmoe.data.prepare import chance, fonts, workers

Drawn = UInt8[np.ndarray, 'faces characters 32 32']

_TEST, _VAL = 0.05, 0.05  # of the pairs with a training face


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What is drawn.

  Attributes:
    characters: the classes.
    others: characters for few-shot learning; those with enough images stay.
    shots: images of each of these in either of their splits.
    coverage: share of the characters that a face must draw.
  """

  characters: str
  others: str
  shots: int = 20
  coverage: float = 0.5

  @functools.cached_property
  def sample(self) -> str:
    """Characters by which faces are measured and compared."""
    return self.characters[:: max(len(self.characters) // 128, 1)]


class Kept(NamedTuple):
  """A face that is drawn.

  Attributes:
    face: where it is.
    name: its own, of all that are drawn.
    family: of its design.
    held_out: whether no training sees the family.
    nearest: of a held-out face, the nearest training face and its distance.
  """

  face: fonts.Face
  name: str
  family: str
  held_out: bool
  nearest: tuple[str, float] | None


class Split(NamedTuple):
  """Images with their labels, the numbers of their faces, and the classes."""

  images: fonts.Images
  labels: Int32[np.ndarray, ' n']
  faces: Int32[np.ndarray, ' n']
  classes: str


def make(kept: list[Kept], recipe: Recipe, processes: int) -> dict[str, Split]:
  """Draws all faces, and returns the splits."""
  drawn = _draw(kept, recipe, processes)
  first, classes = len(recipe.characters), recipe.characters
  rows: dict[str, list[tuple[int, int, int]]] = {
    name: [] for name in ('train', 'val', 'test', 'faces')
  }
  for f, face in enumerate(kept):
    for c in np.flatnonzero(drawn[f, :first].any((1, 2))):
      rows[_part(face, classes[c])].append((f, int(c), int(c)))
  made = {name: _gather(drawn, each, classes) for name, each in rows.items()}
  return made | _few_shot(drawn, kept, recipe)


def _part(face: Kept, character: str) -> str:
  if face.held_out:
    return 'faces'
  at = chance.share(f'{face.name}/{character}')
  return 'test' if at < _TEST else 'val' if at < _TEST + _VAL else 'train'


def _few_shot(
  drawn: Drawn, kept: list[Kept], recipe: Recipe
) -> dict[str, Split]:
  """Returns a pool of shots and what to test on, by training faces alone."""
  first, shots = len(recipe.characters), recipe.shots
  pool, test, classes = [], [], ''
  for c, character in enumerate(recipe.others):
    order = sorted(
      (chance.share(f'{face.name}/{character}'), f)
      for f, face in enumerate(kept)
      if not face.held_out and drawn[f, first + c].any()
    )
    rows = [(f, first + c, len(classes)) for _, f in order]
    if len(rows) >= 2 * shots:
      pool += rows[:shots]
      test += rows[shots : 2 * shots]
      classes += character
  return {
    'fewshot_train': _gather(drawn, pool, classes),
    'fewshot_test': _gather(drawn, test, classes),
  }


def _gather(
  drawn: Drawn, rows: list[tuple[int, int, int]], classes: str
) -> Split:
  """Returns (face, character, label) rows in a fixed order, well mixed."""
  table = np.array(rows, np.int32).reshape(-1, 3)
  faces, characters, labels = table[splits.fixed_order(len(table))].T
  return Split(drawn[faces, characters], labels, faces, classes)


def _draw(kept: list[Kept], recipe: Recipe, processes: int) -> Drawn:
  """Returns what each face draws of the classes and, behind them, others."""
  characters = recipe.characters + recipe.others
  shape = (len(kept), len(characters), fonts.SIZE, fonts.SIZE)
  drawn = np.zeros(shape, np.uint8)
  work = functools.partial(
    fonts.draw, characters=characters, sample=recipe.sample
  )
  faces = [each.face for each in kept]
  for i, images in enumerate(workers.each(work, faces, processes)):
    drawn[i] = images
  return drawn
