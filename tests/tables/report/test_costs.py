"""Equal cost: by a run that costs the same, or between two."""

import math

import pytest

from softmoe.tables.report.numbers import costs, groups
from softmoe.tables.report.numbers.runs import Run


def group(model, sweep, accuracy, exaflop, seconds=0.0):
  """Returns a group whose seed s reached accuracy + s / 100."""
  runs = tuple(
    Run(
      name=f'{model}-seed{seed}',
      model=model,
      sweep=sweep,
      seed=seed,
      steps=10,
      costs={'training_exaflop': exaflop},
      metrics={'test/accuracy': accuracy + seed / 100},
      curve=[],
      facts={},
    )
    for seed in (0, 1)
  )
  times = {'train_step_seconds': seconds, 'inference_seconds': 1, 'examples': 4}
  return groups.Group(model, runs, 2, times if seconds else {})


def test_between_two_points_in_the_logarithm():
  points = [(1.0, 0.5), (100.0, 0.9)]
  assert costs.at_cost(points, 10.0) == pytest.approx(0.7)
  assert costs.at_cost(points, 100.5) == 0.9
  assert costs.at_cost(points, 0.97) is None
  assert costs.at_cost(points, 103.0) is None


def test_seconds_are_steps_times_one_step_timed_alone():
  timed = group('vit', {}, 0.5, 1.0, seconds=0.5)
  assert costs.TRAINING_SECONDS.of(timed) == 5
  assert costs.INFERENCE_SECONDS.of(timed) == 0.25
  assert costs.TRAINING_SECONDS.of(group('vit', {}, 0.5, 1.0)) is None
  assert costs.TRAINING_FLOPS.of(timed) == 1e18
  assert costs.INFERENCE_FLOPS.of(timed) is None


def test_a_field_that_leaves_the_cost_makes_lines_of_its_own():
  made = [
    group('soft', {'scale': s, 'width': w}, 0.5, w / 32 + s / 1000)
    for w in (64, 32)
    for s in (1, 8)
  ]
  lines = costs.lines(made, costs.TRAINING_FLOPS)
  assert [[tuple(g.sweep.values()) for g in line] for line in lines] == [
    [(1, 32), (1, 64)],
    [(8, 32), (8, 64)],
  ]


def test_no_line_where_two_fields_change_the_cost():
  made = [
    group('soft', {'experts': e, 'slots': s}, 0.5, e * s / 4)
    for e, s in ((4, 4), (8, 4), (4, 8))
  ]
  lines = costs.lines(made, costs.TRAINING_FLOPS)
  assert [len(line) for line in lines] == [1, 1, 1]


def test_no_line_along_words():
  made = [
    group('soft', {'blocks': blocks}, 0.5, cost)
    for blocks, cost in (('last', 1.0), ('all', 2.0))
  ]
  lines = costs.lines(made, costs.TRAINING_FLOPS)
  assert [len(line) for line in lines] == [1, 1]


def test_a_line_is_named_by_what_its_groups_share():
  base = group('vit', {'percent': 20}, 0.8, 2.0)
  made = [
    group('soft', {'from': start, 'percent': percent}, 0.5, percent / 10)
    for start in ('dense', 'scratch')
    for percent in (10, 50)
  ]
  found = costs.verdicts(
    base, [base, *made], costs.TRAINING_FLOPS, 'test/accuracy'
  )
  labels = [verdict.label for verdict in found]
  assert labels == ['soft, from dense', 'soft, from scratch']


def test_a_cost_is_the_mean_of_what_the_seeds_learned():
  one, other = group('xmoe', {}, 0.5, 1.0), group('xmoe', {}, 0.5, 2.0)
  both = groups.Group('xmoe', (one.runs[0], other.runs[1]), 2, {})
  assert both.cost('training_exaflop') == 1.5
  assert both.cost('gflop') is None


def test_verdicts_at_the_baselines_cost():
  base = group('vit', {'width': 64}, 0.8, 2.0)
  made = [
    base,
    group('same', {'width': 64}, 0.82, 2.02),
    group('around', {'width': 32}, 0.7, 1.0),
    group('around', {'width': 64}, 0.9, 4.0),
    group('dear', {'width': 64}, 0.99, 3.0),
  ]
  same, around, dear = costs.verdicts(
    base, made, costs.TRAINING_FLOPS, 'test/accuracy'
  )
  assert same.difference.mean == pytest.approx(0.02) and not same.between
  assert around.difference.mean == pytest.approx(0) and around.between
  assert around.difference.n == 2 and around.label == 'around'
  assert dear.difference is None and dear.ratio == 1.5
  assert not costs.verdicts(base, made, costs.TRAINING_SECONDS, 'test/accuracy')


@pytest.mark.parametrize(
  ('cost', 'value', 'text'),
  [
    (costs.TRAINING_FLOPS, 2.5e18, '2.5 exaFLOP'),
    (costs.TRAINING_FLOPS, 1.234e13, '12.3 teraFLOP'),
    (costs.INFERENCE_FLOPS, 4e6, '4 MFLOP'),
    (costs.INFERENCE_SECONDS, 4.69e-5, '46.9 µs'),
    (costs.TRAINING_SECONDS, 40.0, '40 s'),
    (costs.TRAINING_SECONDS, 150.0, '2.5 min'),
    (costs.TRAINING_SECONDS, 90_000.0, '25 h'),
  ],
)
def test_in_a_unit_that_suits(cost, value, text):
  assert cost.text(value) == text


def test_the_air_of_a_ratio_is_symmetric():
  assert costs.is_same(1.0, costs.SAME) and costs.is_same(costs.SAME, 1.0)
  assert not costs.is_same(1.0, math.nextafter(costs.SAME, 2))
