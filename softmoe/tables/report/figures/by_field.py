"""Quality, and the time of a step, by the values of a swept field."""

from collections.abc import Callable
from typing import Any

from softmoe.tables.report.figures import marks
from softmoe.tables.report.figures.marks import Figure, Styles
from softmoe.tables.report.numbers import groups as groups_lib
from softmoe.tables.report.numbers.groups import Group
from softmoe.tables.report.numbers.metric import Metric
from softmoe.tables.report.plots import scatter
from softmoe.tables.report.plots.scatter import Point
from softmoe.tables.report.plots.svg import Style

Lines = dict[tuple[str, str], list[Group]]


def quality(
  field: str, groups: list[Group], metric: Metric, styles: Styles
) -> list[Figure]:
  """Returns the figure of a metric; a model without the field is a level."""
  shown = [g for g in groups if g.values(metric.name)]
  levels = [
    scatter.Level(
      marks.point(g, metric, 0).y,
      styles[g.model],
      marks.point(g, metric, 0).tip,
    )
    for g in shown
    if field not in g.sweep
  ]
  place = lambda g, x: marks.point(g, metric, x)
  return _draw(field, shown, metric.label, metric.title, place, styles, levels)


def speed(field: str, groups: list[Group], styles: Styles) -> list[Figure]:
  """Returns the figure of the time of a training step, where there are any."""
  shown = [g for g in groups if g.times]
  place = lambda g, x: _step(g, x)
  title = 'training step (ms)'
  return _draw(field, shown, 'training step', title, place, styles, [])


def _step(group: Group, x: float) -> Point:
  milliseconds = 1e3 * float(group.times['train_step_seconds'])
  words = f'{group.label}\ntraining step {milliseconds:.3g} ms, timed alone'
  return Point(x, milliseconds, None, [], words, f'group-{group.name}')


def _draw(
  field: str,
  groups: list[Group],
  label: str,
  axis: str,
  place: Callable[[Group, float], Point],
  styles: Styles,
  levels: list[scatter.Level],
) -> list[Figure]:
  swept = [g for g in groups if field in g.sweep]
  if not swept:
    return []
  values = groups_lib.fields(swept)[field]
  lines = _lines(field, swept)
  looks = _styles(lines, styles)
  series = [
    scatter.Series(
      ', '.join(filter(None, key)),
      looks[key],
      _points(line, field, values, place),
    )
    for key, line in lines.items()
  ]
  short, names = groups_lib.short(field), [str(v) for v in values]
  title = f'{label} by {short}'
  chart = scatter.Chart(title, short, axis, series, names, levels=levels)
  legend = [(s.style, s.label) for s in series]
  unswept = [g for g in groups if field not in g.sweep] if levels else []
  legend += marks.legend(unswept, styles)
  return [Figure(title, scatter.draw(chart), legend)]


def _lines(field: str, groups: list[Group]) -> Lines:
  """Returns the groups by model and by what else is swept."""
  found: Lines = {}
  for group in groups:
    rest = {f: v for f, v in group.sweep.items() if f != field}
    key = group.model, ', '.join(groups_lib.pairs(rest))
    found.setdefault(key, []).append(group)
  return found


def _points(
  line: list[Group],
  field: str,
  values: list[Any],
  place: Callable[[Group, float], Point],
) -> list[Point]:
  order = sorted(line, key=lambda g: values.index(g.sweep[field]))
  return [place(g, float(values.index(g.sweep[field]))) for g in order]


def _styles(lines: Lines, styles: Styles) -> dict[tuple[str, str], Style]:
  """Returns a style a line: models by colour, what else is swept by shape.

  The lines of one model alone have colours of their own.
  """
  models = list(dict.fromkeys(model for model, _ in lines))
  rests = list(dict.fromkeys(rest for _, rest in lines))
  if len(rests) == 1:
    return {key: styles[key[0]] for key in lines}
  if len(models) == 1:
    return {key: Style.of(i) for i, key in enumerate(lines)}
  return {
    (model, rest): Style(
      styles[model].colour, Style.of(rests.index(rest)).shape
    )
    for model, rest in lines
  }
