"""How well images and texts find each other, by their directions.

Axes: `n` images, `t` texts, `g` groups, `z` width, `q` queries, `i` items.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

Vectors = Float[np.ndarray, 'n z']
Right = Callable[[slice], Bool[np.ndarray, 'q i']]

RANKS = (1, 10)
NAMES = tuple(
  f'{way}@{k}' for way in ('image_to_text', 'text_to_image') for k in RANKS
)
_PAIRS = 2**24  # cosines that there are at a time


def recalls(
  images: Float[np.ndarray, 'n z'],
  labels: Int[np.ndarray, ' n'],
  texts: Float[np.ndarray, 't z'],
  belongs: Bool[np.ndarray, 'g t'],
) -> dict[str, float]:
  """Returns recall@1 and @10 both ways, by the names of `NAMES`.

  A query counts if one of its first items is right: for an image a text of its
  group, for a text an image of a group that it is of. Where several groups have
  the same text, it is one text of all of them. Of equal items the wrong ones
  come first, so that a model that tells nothing apart finds nothing.

  Args:
    images: directions.
    labels: group of each image.
    texts: directions of distinct texts.
    belongs: which texts are of each group.
  """
  of_image = lambda at: belongs[labels[at]]
  of_text = lambda at: belongs[:, at].T[:, labels]
  ways = (
    ranks(images, texts, of_image),
    ranks(texts, images, of_text),
  )
  found = (float(np.mean(way < k)) for way in ways for k in RANKS)
  return dict(zip(NAMES, found, strict=True))


def ranks(
  queries: Float[np.ndarray, 'q z'],
  items: Float[np.ndarray, 'i z'],
  right: Right,
) -> Int[np.ndarray, ' q']:
  """Returns how many wrong items come before the first right one.

  Args:
    queries: directions.
    items: directions.
    right: from a slice of the queries to which items are right.
  """
  size = max(1, _PAIRS // len(items))
  return np.concatenate(
    [
      _ranks(queries[at] @ items.T, right(at))
      for at in _slices(len(queries), size)
    ]
  )


def means(
  vectors: Float[np.ndarray, 't z'], parts: Sequence[Sequence[int]]
) -> Float[np.ndarray, 'g z']:
  """Returns the direction of the mean of some vectors, for each group.

  Args:
    vectors: directions.
    parts: which of them are of each group.
  """
  found = np.stack([vectors[part].mean(axis=0) for part in parts])
  length = np.linalg.norm(found, axis=1, keepdims=True)
  return found / np.maximum(length, 1e-12)


def accuracy(
  images: Float[np.ndarray, 'n z'],
  labels: Int[np.ndarray, ' n'],
  classes: Float[np.ndarray, 'g z'],
) -> float:
  """Returns the share of images that are nearest to their own class.

  Args:
    images: directions.
    labels: class of each image.
    classes: directions.
  """
  own = lambda at: labels[at][:, None] == np.arange(len(classes))[None]
  return float(np.mean(ranks(images, classes, own) == 0))


def _ranks(
  cosines: Float[np.ndarray, 'q i'], right: Bool[np.ndarray, 'q i']
) -> Int[np.ndarray, ' q']:
  best = np.max(cosines, axis=1, where=right, initial=-np.inf, keepdims=True)
  # Not `>=`: what is no number is in front.
  return np.sum(~right & ~(cosines < best), axis=1)


def _slices(count: int, size: int) -> Iterable[slice]:
  return (slice(i, i + size) for i in range(0, count, size))
