"""Quality over the experts that tokens want, where thresholds were tried.

A trained model is evaluated at each by `softmoe.tables.thresholds.evaluate`.
"""

from collections.abc import Iterable

from softmoe.tables.report.figures import marks
from softmoe.tables.report.figures.marks import Figure, Styles
from softmoe.tables.report.numbers.groups import Group
from softmoe.tables.report.numbers.metric import Metric
from softmoe.tables.report.plots import scatter
from softmoe.tables.report.plots.scatter import Level, Point, Series
from softmoe.tables.report.plots.svg import Style


def draw(
  groups: list[Group], baseline: str, metric: Metric, styles: Styles
) -> list[Figure]:
  """Returns a figure with a line for each group that has such metrics."""
  quality = Metric(metric.name.removeprefix(f'{metric.split}/'))
  lines = {g.label: list(_points(g, quality)) for g in groups}
  lines = {label: points for label, points in lines.items() if points}
  if not lines:
    return []
  series = [
    Series(label, Style.of(i), sorted(points, key=lambda p: p.x))
    for i, (label, points) in enumerate(lines.items())
  ]
  bases = [g for g in groups if g.model == baseline and g.values(metric.name)]
  title = f'{quality.label} by experts wanted'
  chart = scatter.Chart(
    title,
    'experts that a token wants',
    quality.title,
    series,
    levels=[_level(g, metric, styles) for g in bases],
  )
  legend = [(s.style, s.label) for s in series] + marks.legend(bases, styles)
  return [Figure(title, scatter.draw(chart), legend)]


def _points(group: Group, quality: Metric) -> Iterable[Point]:
  names = dict.fromkeys(name for run in group.runs for name in run.metrics)
  for metric in map(Metric, names):
    if metric.name == f'{metric.split}/{quality.name}':
      wanted = group.estimate(f'{metric.split}/moe/wanted')
      if metric.is_at_threshold and wanted:
        words = f'{wanted.mean:.3g} experts wanted'
        yield marks.point(group, metric, wanted.mean, words)


def _level(group: Group, metric: Metric, styles: Styles) -> Level:
  mean = marks.point(group, metric, 0)
  return Level(mean.y, styles[group.model], mean.tip)
