"""Means over seeds and their intervals, by Student's t.

Seeds are a sample of a normal population of unknown spread: with n of them the
95 % interval is mean ± t(n - 1, 0.975) s / sqrt(n), s the sample's standard
deviation (Student, The Probable Error of a Mean, 1908).
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from scipy import special

LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean over seeds.

  Attributes:
    mean: of the values.
    half: half the width of its 95 % interval; None of one value.
    n: how many values.
  """

  mean: float
  half: float | None
  n: int

  @property
  def is_told_from_zero(self) -> bool:
    """Whether the interval leaves out zero."""
    return self.half is not None and abs(self.mean) > self.half


def estimate(values: Iterable[float]) -> Estimate | None:
  """Returns the mean and its interval, None of no value."""
  values = list(values)
  if not values:
    return None
  n, mean = len(values), statistics.fmean(values)
  if n == 1:
    return Estimate(mean, None, 1)
  quantile = float(special.stdtrit(n - 1, (1 + LEVEL) / 2))
  return Estimate(mean, quantile * statistics.stdev(values) / math.sqrt(n), n)


def difference(
  ours: Mapping[int, float], theirs: Mapping[int, float]
) -> Estimate | None:
  """Returns the mean difference of the seeds that both have, each to its own.

  Two runs of one seed see the same batches in the same order, so much of what
  a seed changes cancels, and the interval is that of the differences.
  """
  return estimate(ours[seed] - theirs[seed] for seed in ours if seed in theirs)


def frontier(
  points: Sequence[tuple[float, float]], direction: float
) -> list[int]:
  """Returns the indices of the points that no cheaper one matches.

  Args:
    points: cost and quality of each.
    direction: 1 if a larger quality is a better one, else -1.

  Returns:
    the Pareto frontier, from the cheapest.
  """
  order = sorted(
    range(len(points)), key=lambda i: (points[i][0], -direction * points[i][1])
  )
  best, found = -math.inf, []
  for i in order:
    if direction * points[i][1] > best:
      best = direction * points[i][1]
      found.append(i)
  return found
