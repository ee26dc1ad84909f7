"""Batches of examples of like length, so that little is padding.

Every batch is of one bucket, and as long as that is: a function of the seed and
the step, as all batches are. In an epoch every bucket is shuffled and cut into
batches; what fills none goes up into the next bucket, and of the last one it is
left out. Then the batches are shuffled.

Axes: `n` examples, `b` those of a batch.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Int64, Integer

from softmoe.data import splits
from softmoe.errors import UserError

Indices = Int64[np.ndarray, ' _n']


@dataclasses.dataclass(frozen=True)
class Batch:
  """Which examples are in a batch, and how long it is."""

  indices: Indices
  length: int


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
  """The order of the batches of a split.

  Attributes:
    lengths: of the examples; those above the last bucket are in no batch.
    buckets: the most tokens of each bucket, ascending.
    batch_size: examples of a batch.
    seed: of the order.
  """

  lengths: Integer[np.ndarray, ' n']
  buckets: tuple[int, ...]
  batch_size: int
  seed: int

  def train(self, step: int) -> Batch:
    """Returns the batch of a step of training.

    Raises:
      UserError: there are too few examples for any batch.
    """
    if not self._per_epoch:
      given = int(np.sum(self._bucket < len(self.buckets)))
      expected = f'at most {given}, the examples that are short enough'
      raise UserError('config.data.batch_size', self.batch_size, expected)
    epoch, place = divmod(step, self._per_epoch)
    return self._epoch(epoch)[place]

  @functools.cached_property
  def evaluation(self) -> list[Batch]:
    """All examples once, a bucket after the other; longer ones in the last.

    A batch at the end of a bucket may have fewer.
    """
    bucket = np.minimum(self._bucket, len(self.buckets) - 1)
    return [
      Batch(part, length)
      for i, length in enumerate(self.buckets)
      for part in self._cut(np.flatnonzero(bucket == i))
    ]

  @functools.cached_property
  def _bucket(self) -> Indices:
    return np.searchsorted(self.buckets, self.lengths)

  @functools.cached_property
  def _per_epoch(self) -> int:
    return len(self._epoch(0))

  def _cut(self, indices: Indices) -> list[Indices]:
    size = self.batch_size
    return [indices[i : i + size] for i in range(0, len(indices), size)]

  @functools.lru_cache(maxsize=2)  # noqa: B019 lives as long as its data
  def _epoch(self, epoch: int) -> list[Batch]:
    batches, rest = [], np.zeros(0, np.int64)
    for i, length in enumerate(self.buckets):
      found = np.append(rest, np.flatnonzero(self._bucket == i))
      found = found[splits.fixed_order(len(found), (self.seed, epoch, i))]
      parts = self._cut(found)
      full = [part for part in parts if len(part) == self.batch_size]
      rest = parts[-1] if len(parts) > len(full) else found[:0]
      batches += [Batch(part, length) for part in full]
    order = splits.fixed_order(len(batches), (self.seed, epoch, -1 % 2**32))
    return [batches[i] for i in order]


def check(buckets: tuple[int, ...]) -> None:
  """Raises a UserError unless the bounds of the buckets ascend."""
  ascending = all(a < b for a, b in zip(buckets, buckets[1:], strict=False))
  if not buckets or not ascending:
    expected = 'ascending numbers of tokens, such as (16, 32, 64)'
    raise UserError('config.data.buckets', buckets, expected)
