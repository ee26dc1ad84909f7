"""Learning curves: a model's mean over seeds, and each seed faintly."""

import dataclasses
import statistics
from collections.abc import Iterable

from softmoe.tables.report.numbers.groups import Group
from softmoe.tables.report.plots import axes, svg
from softmoe.tables.report.plots.axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP
from softmoe.tables.report.plots.svg import WIDTH, Style

_MOST = 120  # points a line; more are averaged

Line = list[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Curve:
  """One model's: label, style, and the line of each run by its name."""

  label: str
  style: Style
  runs: dict[str, Line]


def of_group(group: Group, key: str, style: Style, factor: float) -> Curve:
  """Returns the curve of what the runs wrote as `key`, times `factor`."""
  lines = {run.name: _read(run.curve, key, factor) for run in group.runs}
  return Curve(
    group.label, style, {n: line for n, line in lines.items() if line}
  )


def _read(curve: list[dict], key: str, factor: float) -> Line:
  line = [
    (float(p['step']), factor * float(p[key]))
    for p in curve
    if isinstance(p.get(key), int | float)
  ]
  size = -(-len(line) // _MOST)
  chunks = [line[i : i + size] for i in range(0, len(line), size or 1)]
  return [(c[-1][0], statistics.fmean(y for _, y in c)) for c in chunks]


def _mean(lines: list[Line]) -> Line:
  """Returns the mean at the steps that all lines have."""
  tables = [dict(line) for line in lines]
  shared = [step for step in tables[0] if all(step in t for t in tables)]
  return [(step, statistics.fmean(t[step] for t in tables)) for step in shared]


def draw(
  label: str,
  title: str,
  curves: list[Curve],
  log: bool,
  x_title: str = 'step',
) -> str:
  """Returns the curves as SVG; `log`: of a loss, by its logarithm."""
  points = [p for c in curves for line in c.runs.values() for p in line]
  steps, values = zip(*points, strict=True)
  x = axes.Scale(0, max(steps), LEFT, WIDTH - RIGHT)
  y = axes.span(values, HEIGHT - BOTTOM, TOP, log and axes.is_wide(values))
  ticks = [(x(step), f'{step:g}') for step in x.ticks()]
  inside = list(axes.frame(x_title, title, y, ticks))
  for curve in curves:
    inside += _draw(curve, x, y)
  return svg.document(HEIGHT, label, inside)


def _draw(curve: Curve, x: axes.Scale, y: axes.Scale) -> Iterable[str]:
  place = lambda line: [(x(step), y(value)) for step, value in line]
  colour = f'c{curve.style.colour}'
  if len(curve.runs) > 1:
    for name, line in curve.runs.items():
      yield svg.path(place(line), f'w {colour}', name)
  mean = _mean(list(curve.runs.values()))
  if mean:
    runs = f'{curve.label}: mean of {", ".join(curve.runs)}'
    last = curve.style.marker(*place(mean)[-1])
    yield svg.tipped(runs, svg.path(place(mean), f'l {colour}') + last)
