"""Plots of quality over something: points with intervals, lines, a frontier."""

import dataclasses
from collections.abc import Iterable

from softmoe.tables.report.numbers import statistics
from softmoe.tables.report.plots import axes, svg
from softmoe.tables.report.plots.axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP
from softmoe.tables.report.plots.svg import WIDTH, Length, Style

_APART = 11.0  # between points that would cover each other
_BESIDE = 5.0  # from a mean to its seeds


@dataclasses.dataclass(frozen=True)
class Point:
  """A mean over seeds.

  Attributes:
    x: where it stands.
    y: the mean.
    half: half its interval; None: none.
    seeds: value and words of each run.
    tip: what it tells when it is touched.
    link: id of its row on the page.
  """

  x: Length
  y: Length
  half: float | None
  seeds: list[tuple[float, str]]
  tip: str
  link: str


@dataclasses.dataclass(frozen=True)
class Series:
  """Points of one kind, from left to right, with a line between them."""

  label: str
  style: Style
  points: list[Point]


@dataclasses.dataclass(frozen=True)
class Level:
  """A quality that holds for every x: its value, style and words."""

  y: float
  style: Style
  tip: str


@dataclasses.dataclass(frozen=True)
class Chart:
  """What is drawn.

  Attributes:
    label: for those who cannot see it.
    x_title: with its unit.
    y_title: with its unit.
    series: at least one, each with a point.
    x_names: words for the places 0, 1, ... instead of numbers.
    frontier: 1 if a larger y is better, -1 if a smaller one is, to draw the
      best at each x; None: not drawn.
    levels: lines across.
  """

  label: str
  x_title: str
  y_title: str
  series: list[Series]
  x_names: list[str] | None = None
  frontier: float | None = None
  levels: list[Level] = dataclasses.field(default_factory=list)


def draw(chart: Chart) -> str:
  """Returns the picture as SVG."""
  points = [p for each in chart.series for p in each.points]
  x = _x_scale(chart, points)
  y = axes.around(
    [
      *(v for p in points for v in (p.y, *(v for v, _ in p.seeds))),
      *(level.y for level in chart.levels),
    ],
    [e for p in points for e in ends(p)],
    HEIGHT - BOTTOM,
    TOP,
  )
  places = _side_by_side(points, x)
  inside = [
    *axes.frame(chart.x_title, chart.y_title, y, _x_ticks(chart, x)),
    *_frontier(chart, points, places, y),
  ]
  for level in chart.levels:
    across = [(LEFT, y(level.y)), (WIDTH - RIGHT, y(level.y))]
    line = svg.path(across, f'l c{level.style.colour}')
    end = level.style.marker(WIDTH - RIGHT - 4, y(level.y))
    inside.append(svg.tipped(level.tip, line + end))
  for each in chart.series:
    at = [(places[id(p)], y(p.y)) for p in each.points]
    inside.append(svg.path(at, f'l c{each.style.colour}'))
  for each in chart.series:
    for p in each.points:
      inside.append(_mark(p, places[id(p)], y, each.style))
  return svg.document(HEIGHT, chart.label, inside)


def ends(point: Point) -> tuple[Length, ...]:
  """Returns the ends of a point's interval, the point itself without one."""
  return (point.y - (point.half or 0), point.y + (point.half or 0))


def _x_scale(chart: Chart, points: list[Point]) -> axes.Scale:
  left, right = LEFT + 4, WIDTH - RIGHT
  if chart.x_names:
    return axes.Scale(-0.5, len(chart.x_names) - 0.5, left, right)
  values = [p.x for p in points]
  return axes.span(values, left, right, axes.is_wide(values))


def _side_by_side(points: list[Point], x: axes.Scale) -> dict[int, float]:
  """Returns the place of each point; those of one cost stand in a row."""
  places: dict[int, float] = {}
  cluster: list[Point] = []
  for point in sorted(points, key=lambda p: p.x):
    if cluster and x(point.x) - x(cluster[0].x) > _APART:
      places |= _spread(cluster, x)
      cluster = []
    cluster.append(point)
  return places | _spread(cluster, x)


def _spread(cluster: list[Point], x: axes.Scale) -> dict[int, float]:
  middle = sum(x(p.x) for p in cluster) / len(cluster)
  if len(cluster) == 1:
    return {id(cluster[0]): middle}
  step = min(_APART, (WIDTH - LEFT - RIGHT) / len(cluster))
  half = step * (len(cluster) - 1) / 2
  first = min(max(middle - half, LEFT + 6), WIDTH - RIGHT - 2 * half)
  return {id(p): first + i * step for i, p in enumerate(cluster)}


def _x_ticks(chart: Chart, x: axes.Scale) -> list[tuple[float, str]]:
  if chart.x_names:
    return [(x(i), name) for i, name in enumerate(chart.x_names)]
  return [(x(value), axes.number(value)) for value in x.ticks()]


def _frontier(
  chart: Chart, points: list[Point], places: dict[int, float], y: axes.Scale
) -> Iterable[str]:
  """Yields the steps from each best point to the next better one."""
  if chart.frontier is None:
    return
  best = statistics.frontier([(p.x, p.y) for p in points], chart.frontier)
  steps: list[tuple[float, float]] = []
  for i in best:
    place = places[id(points[i])], y(points[i].y)
    steps += [(place[0], steps[-1][1]), place] if steps else [place]
  yield svg.path([*steps, (WIDTH - RIGHT, steps[-1][1])], 'f')


def _mark(point: Point, at: float, y: axes.Scale, style: Style) -> str:
  low, high = (y.clamp(end) for end in ends(point))
  bar = svg.line(at, low, at, high, f'e c{style.colour}')
  seeds = [(at + _BESIDE, y(value), tip) for value, tip in point.seeds]
  return mark(point, bar, (at, y(point.y)), seeds, style)


def mark(
  point: Point,
  bar: str,
  place: tuple[Length, Length],
  seeds: list[tuple[Length, Length, str]],
  style: Style,
) -> str:
  """Returns a mean with its interval, and beside it a small dot for each run.

  Args:
    point: whose words are told.
    bar: its interval as SVG.
    place: of the mean.
    seeds: place and words of each; of one alone nothing is drawn.
    style: of all.
  """
  mean = bar + svg.target(*place) + style.marker(*place)
  dots = [_seed(*seed, style) for seed in seeds] if len(seeds) > 1 else []
  return ''.join([svg.tipped(point.tip, mean, point.link), *dots])


def _seed(x: Length, y: Length, tip: str, style: Style) -> str:
  dot = f'<circle class="s c{style.colour}" cx="{x:.1f}" cy="{y:.1f}" r="2"/>'
  return svg.tipped(tip, dot + svg.target(x, y, 3), kind='pt seed')
