"""Scales and the places of marks."""

import xml.etree.ElementTree as ET

import pytest

from softmoe.tables.report.plots import axes, curves, rows, scatter, svg

STYLE = svg.Style.of(0)


@pytest.mark.parametrize(
  ('scale', 'ticks'),
  [
    (axes.Scale(71.3, 79.6, 0, 1), [72, 74, 76, 78]),
    (axes.Scale(0, 1, 0, 1), [0, 0.5, 1]),
    (axes.Scale(-4.9, 4.9, 0, 1), [-4, -2, 0, 2, 4]),
    (axes.Scale(0.9, 120, 0, 1, log=True), [1, 2, 5, 10, 20, 50, 100]),
    (axes.Scale(0.9, 400, 0, 1, log=True), [1, 3, 10, 30, 100, 300]),
    (axes.Scale(3, 21, 0, 1, log=True), [5, 10, 20]),
  ],
)
def test_ticks_are_round_and_inside(scale, ticks):
  assert scale.ticks() == pytest.approx(ticks)


@pytest.mark.parametrize(
  ('value', 'words'),
  [
    (0, '0'),
    (-0.25, '−0.25'),
    (9500, '9500'),
    (10_000, '1e4'),
    (15_000, '1.5e4'),
    (100_200, '1.002e5'),
    (-20_000, '−2e4'),
    (3e12, '3e12'),
  ],
)
def test_a_tick_says_its_value(value, words):
  assert axes.number(value) == words


def test_a_scale_may_be_logarithmic():
  scale = axes.Scale(1, 100, 0, 200, log=True)
  assert scale(10) == pytest.approx(100)
  assert scale.clamp(1e6) == 200


def test_an_interval_of_two_seeds_does_not_rule_the_axis():
  """It is 13 times as wide as the seeds are apart."""
  scale = axes.around([1.0, 2.0], [-5.0, 8.0], 0, 100)
  assert scale.low > 0 and scale.high < 3


def test_equal_values_still_have_an_axis():
  assert axes.around([0.5], [0.5, 0.5], 0, 100)(0.5) == pytest.approx(50)
  assert axes.around([0.0], [0.0], 0, 100)(0.0) == pytest.approx(50)


def test_models_differ_in_colour_and_in_shape():
  styles = [svg.Style.of_baseline(), *map(svg.Style.of, range(6))]
  assert len({style.colour for style in styles}) == 7
  assert len({style.shape for style in styles}) == 7
  many = {svg.Style.of(i) for i in range(42)}
  assert len(many) == 42


def point(x, y, half=None, seeds=()):
  return scatter.Point(x, y, half, [(s, 'seed') for s in seeds], f'{y}', '')


def markers(picture):
  """Returns the places of all markers, by the order of drawing."""
  places = []
  for mark in ET.fromstring(picture).iter('{http://www.w3.org/2000/svg}path'):
    inside = mark.get('transform').split(')')[0].removeprefix('translate(')
    places.append(tuple(map(float, inside.split())))
  return places


@pytest.mark.parametrize(
  ('names', 'lines'), [(['8', '16'], 1), (['first 3', 'every other'] * 3, 2)]
)
def test_words_that_would_touch_stand_on_two_lines(names, lines):
  series = [scatter.Series('one', STYLE, [point(i, 1.0 + i) for i in (0, 1)])]
  chart = scatter.Chart('by field', 'field', 'quality', series, names)
  texts = ET.fromstring(scatter.draw(chart)).iter(
    '{http://www.w3.org/2000/svg}text'
  )
  assert len({t.get('y') for t in texts if t.text in names}) == lines


def test_points_of_one_cost_stand_side_by_side():
  points = [point(1.0, 5.0), point(1.001, 5.1), point(10.0, 7.0)]
  series = [scatter.Series(str(p.x), STYLE, [p]) for p in points]
  chart = scatter.Chart('quality', 'cost', 'quality', series, frontier=1.0)
  (x1, y1), (x2, y2), (x3, _) = markers(scatter.draw(chart))
  assert x2 - x1 == pytest.approx(11, abs=0.2) and x3 - x2 > 100
  assert y2 < y1


def test_the_frontier_steps_from_best_to_best():
  points = [point(1.0, 5.0), point(2.0, 4.0), point(10.0, 7.0)]
  series = [scatter.Series('one', STYLE, points)]
  chart = scatter.Chart('quality', 'cost', 'quality', series, frontier=1.0)
  picture = scatter.draw(chart)
  (line,) = [
    each
    for each in ET.fromstring(picture).iter(
      '{http://www.w3.org/2000/svg}polyline'
    )
    if each.get('class') == 'f'
  ]
  steps = [tuple(map(float, p.split(','))) for p in line.get('points').split()]
  (x1, y1), _, (x3, y3) = markers(picture)
  assert steps[:3] == [(x1, y1), (x3, y1), (x3, y3)]


def test_rows_stand_under_each_other_and_zero_is_marked():
  made = [
    rows.Row('a', '+1', STYLE, point(0, 1.0, 0.5, [0.8, 1.2])),
    rows.Row('b', '+2', STYLE, point(0, 2.0)),
  ]
  picture = rows.draw('difference', 'points', made, zero=True)
  (x1, y1), (x2, y2) = markers(picture)
  assert x1 < x2 and y1 < y2
  assert 'class="z"' in picture
  assert picture.count('<title>') == 4  # a mean each, and two seeds


def test_a_curve_is_the_mean_at_the_steps_that_all_seeds_have():
  lines = {'a': [(1.0, 2.0), (2.0, 4.0)], 'b': [(2.0, 6.0), (3.0, 1.0)]}
  curve = curves.Curve('model', STYLE, lines)
  picture = curves.draw('loss', 'loss', [curve], log=False)
  ((x, y),) = markers(picture)
  assert 'mean of a, b' in picture
  assert axes.LEFT < x < svg.WIDTH and axes.TOP < y < axes.HEIGHT
