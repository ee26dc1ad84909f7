"""Which images a few-shot evaluation trains on, and which it looks at.

Axes: `s` seeds, `c` classes, `n` images.
"""

import dataclasses
import functools
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Integer

from softmoe import config as config_lib
from softmoe.data import splits
from softmoe.data.images import source as source_lib
from softmoe.data.images import sources
from softmoe.data.images.config import MAX_PIXELS
from softmoe.errors import UserError, naming
from softmoe.ranges import COUNT, SIZE, Range

HELD_OUT = 10  # images of a class that choose l2, where no split does


@dataclasses.dataclass(frozen=True)
class FewshotConfig:
  """A few-shot evaluation; images become arrays as `config.data` says."""

  source: str = ''  # as `data.source`; empty: off
  train_split: str = 'train'  # what the shots are drawn from
  val_split: str = ''  # chooses l2; empty: images of the train split
  test_split: str = 'test'
  # Images of a class.
  shots: tuple[Annotated[int, SIZE], ...] = (1, 5, 10, 25)
  # Draws of the shots, which are averaged over.
  seeds: Annotated[int, Range(1, 1000)] = 3
  # So many, a fixed sample; 0: all of the train split.
  classes: Annotated[int, COUNT] = 0


class Images(NamedTuple):
  """Images of a source: which, and their class as 0, 1, ...

  Attributes:
    source: what they are read from.
    indices: their places in it, ascending.
    labels: the class of each.
  """

  source: source_lib.Source
  indices: Integer[np.ndarray, ' n']
  labels: Integer[np.ndarray, ' n']


class Draw(NamedTuple):
  """All that an evaluation reads.

  Attributes:
    pool: images of the train split that serve as a shot or choose l2.
    val: images that choose l2; None: those of the pool at `held_out`.
    test: images that the accuracy is of.
    held_out: places in the pool.
    ranked: (seeds, classes, most shots) places in the pool: the first n of each
      row are the n shots of that class.
  """

  pool: Images
  val: Images | None
  test: Images
  held_out: Integer[np.ndarray, ' m']
  ranked: Integer[np.ndarray, 's c n']


def draw(config: FewshotConfig, max_pixels: int = MAX_PIXELS) -> Draw:
  """Returns which images are read; it follows from the config alone.

  Args:
    config: of the evaluation.
    max_pixels: of an image that is decoded.

  Raises:
    UserError: a field is wrong, or the images cannot be read or are too few.
  """
  check(config)
  opened = functools.partial(_open, config, max_pixels)
  source, labels = opened(config.train_split)
  classes = _classes(config, labels)
  most = max(config.shots)
  held_out, ranked = [], []
  for label in classes:
    places = np.flatnonzero(labels == label)
    aside = 0 if config.val_split else min(HELD_OUT, len(places) - most)
    if len(places) < most or not (aside or config.val_split):
      raise UserError(
        'config.fewshot.shots',
        most,
        f'less: class {label} has {len(places)} images in '
        f'{config.train_split!r}, some of which choose l2',
      )
    places = places[splits.fixed_order(len(places), (0, int(label)))]
    held_out.append(places[:aside])
    ranked.append(_shots(config, places[aside:], int(label)))
  others = [
    _of_classes(config, split, classes, *opened(split)) if split else None
    for split in (config.val_split, config.test_split)
  ]
  return _drawn(source, classes, labels, held_out, np.stack(ranked, 1), *others)


def _shots(config: FewshotConfig, places: np.ndarray, label: int) -> np.ndarray:
  """Returns (seeds, most shots) of the places of one class."""
  most = max(config.shots)
  return np.stack(
    [
      places[splits.fixed_order(len(places), (1 + seed, label))][:most]
      for seed in range(config.seeds)
    ]
  )


def _drawn(source, classes, labels, held_out, ranked, val, test) -> Draw:
  """Returns the draw; places are those of the pool, not of the split."""
  held_out = np.concatenate(held_out)
  used = np.unique(np.concatenate([held_out, ranked.ravel()]))
  pool = Images(source, used, np.searchsorted(classes, labels[used]))
  return Draw(
    pool,
    val,
    test,
    np.searchsorted(used, held_out),
    np.searchsorted(used, ranked),
  )


def _of_classes(
  config: FewshotConfig,
  split: str,
  classes: np.ndarray,
  source: source_lib.Source,
  labels: np.ndarray,
) -> Images:
  """Returns the images of a split, of those classes alone."""
  known = np.isin(labels, classes)
  if not (known.all() or config.classes) or not known.any():
    raise UserError(
      _field(config, split),
      split,
      f'classes of {config.train_split!r} alone, such as '
      f'{int(classes[0])}, not {int(labels[~known][0])}',
    )
  indices = np.flatnonzero(known)
  return Images(source, indices, np.searchsorted(classes, labels[indices]))


def _open(
  config: FewshotConfig, max_pixels: int, split: str
) -> tuple[source_lib.Source, np.ndarray]:
  with naming({'split': _field(config, split)}):
    source = sources.open_source(config.source, split, max_pixels)
  labels = source.labels
  if labels is None:  # each example is read for its label
    labels = np.array([source[i]['label'] for i in range(len(source))])
  return source, np.asarray(labels)


def _field(config: FewshotConfig, split: str) -> str:
  """Returns the field that asks for a split."""
  names = ('test_split', 'val_split', 'train_split')
  fields = {getattr(config, name): name for name in names}
  return f'config.fewshot.{fields[split]}'


def _classes(config: FewshotConfig, labels: np.ndarray) -> np.ndarray:
  """Returns the classes that take part, ascending."""
  present = np.unique(labels)
  if config.classes > len(present):
    expected = f'at most {len(present)}, those of {config.train_split!r}'
    raise UserError('config.fewshot.classes', config.classes, expected)
  sample = splits.fixed_order(len(present))[: config.classes or None]
  return np.sort(present[sample])


def check(config: FewshotConfig) -> None:
  """Raises a UserError that names the first field that is wrong."""
  config_lib.check(config, 'config.fewshot')
  if not config.shots:
    raise UserError('config.fewshot.shots', (), 'one number or more')
