"""Intervals by hand: t(1) = 12.706, t(2) = 4.303 at 97.5 %."""

import math

import pytest
from scipy import stats

from softmoe.tables.report.numbers import statistics


def test_three_seeds_by_hand():
  found = statistics.estimate([1.0, 2.0, 3.0])
  assert found.mean == 2 and found.n == 3
  assert found.half == pytest.approx(4.302652729911275 / math.sqrt(3))


def test_two_seeds_by_hand():
  found = statistics.estimate([0.0, 1.0])
  assert found.half == pytest.approx(12.706204736174694 / 2)
  assert not found.is_told_from_zero


def test_agrees_with_scipy():
  values = [0.71, 0.74, 0.78, 0.73, 0.75]
  found = statistics.estimate(values)
  low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
  assert found.mean - found.half == pytest.approx(low)
  assert found.mean + found.half == pytest.approx(high)


def test_one_seed_has_no_interval_and_none_no_mean():
  assert statistics.estimate([0.5]) == statistics.Estimate(0.5, None, 1)
  assert statistics.estimate([]) is None
  assert not statistics.Estimate(0.5, None, 1).is_told_from_zero


def test_pairs_cancel_what_a_seed_changes():
  """Seeds differ by 10, the models by 1 and 3: the interval is of those."""
  ours, theirs = {0: 1.0, 1: 13.0, 7: 5.0}, {1: 10.0, 0: 0.0, 2: 9.0}
  found = statistics.difference(ours, theirs)
  assert (found.mean, found.n) == (2, 2)
  assert found.half == pytest.approx(12.706204736174694)
  assert statistics.difference({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize(
  ('direction', 'expected'), [(1.0, [2, 0, 3]), (-1.0, [2, 1])]
)
def test_the_frontier_has_what_no_cheaper_one_matches(direction, expected):
  points = [(2.0, 5.0), (2.0, 1.0), (1.0, 3.0), (4.0, 6.0), (8.0, 6.0)]
  assert statistics.frontier(points, direction) == expected
