"""What is copied from the paper agrees with itself."""

import pytest

from softmoe.tables.cost import published

ROWS = published.rows()


def test_every_row_is_there():
  refs = [row.ref for row in ROWS if 9 in row.tables]
  assert refs == list(range(1, 108))
  days = [row.days for row in ROWS if row.ref]
  assert days == sorted(days)  # as the caption says
  assert [sum(t in row.tables for row in ROWS) for t in (1, 8)] == [8, 17]


def test_exaflop_are_one_and_a_half_times_gflop_times_images():
  for row in ROWS:
    if row.gflop:  # printed to 0.5 %
      passes = row.exaflop * 1e18 / (row.gflop * 1e9 * row.images)
      assert passes == pytest.approx(1.5, rel=0.01), row


def test_exaflop_of_longer_runs_are_in_proportion():
  of = {}
  for row in ROWS:
    if row.ref is None:
      of.setdefault((row.model, row.routing, row.experts), []).append(row)
  assert max(map(len, of.values())) > 2
  for first, *others in of.values():
    for row in others:
      expected = first.exaflop * row.steps / first.steps
      assert row.exaflop == pytest.approx(expected, rel=1e-3)
