"""A row a model: its mean, the interval, and a dot for each seed."""

import dataclasses
from collections.abc import Iterable

from softmoe.tables.report.plots import axes, scatter, svg
from softmoe.tables.report.plots.axes import RIGHT
from softmoe.tables.report.plots.scatter import Point
from softmoe.tables.report.plots.svg import WIDTH, Length, Style

_ROW, _HEAD, _FOOT = 38, 20, 24
_LEFT = 8
_BELOW = 6.5  # from a mean to its seeds


@dataclasses.dataclass(frozen=True)
class Row:
  """One model; `point.y` is its mean, and `value` the mean in words."""

  label: str
  value: str
  style: Style
  point: Point


def draw(label: str, title: str, rows: list[Row], zero: bool = False) -> str:
  """Returns the rows as SVG.

  Args:
    label: for those who cannot see it.
    title: of the axis, with its unit.
    rows: from the top.
    zero: whether zero is on the axis, with a line of its own.
  """
  seeds = [v for r in rows for v in (r.point.y, *(v for v, _ in r.point.seeds))]
  ends = [e for r in rows for e in scatter.ends(r.point)]
  x = axes.around([*seeds, *[0.0] * zero], ends, _LEFT, WIDTH - RIGHT)
  height = _HEAD + _ROW * len(rows) + _FOOT
  inside = list(_frame(title, x, height, zero))
  for i, row in enumerate(rows):
    inside.append(_draw(row, _HEAD + _ROW * i, x))
  return svg.document(height, label, inside)


def _frame(
  title: str, x: axes.Scale, height: Length, zero: bool
) -> Iterable[str]:
  floor = height - _FOOT
  yield svg.text(2, 12, title, 'a', 'start')
  for value in x.ticks():
    yield svg.line(x(value), _HEAD, x(value), floor, 'g')
    yield svg.text(axes.inside(x(value)), floor + 14, axes.number(value))
  if zero:
    yield svg.line(x(0), _HEAD, x(0), floor, 'z')


def _draw(row: Row, top: Length, x: axes.Scale) -> str:
  middle, point = top + 23, row.point
  low, high = (x.clamp(end) for end in scatter.ends(point))
  bar = svg.line(low, middle, high, middle, f'e c{row.style.colour}')
  words = svg.text(_LEFT, top + 12, row.label, 'n', 'start')
  words += svg.text(WIDTH - RIGHT, top + 12, row.value, 'v', 'end')
  seeds = [(x(value), middle + _BELOW, tip) for value, tip in point.seeds]
  place = x(point.y), middle
  return words + scatter.mark(point, bar, place, seeds, row.style)
