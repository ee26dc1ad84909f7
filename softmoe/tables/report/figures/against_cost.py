"""Quality against what it costs, with the Pareto frontier."""

from softmoe.tables.report.figures import marks
from softmoe.tables.report.figures.marks import Figure, Styles
from softmoe.tables.report.numbers import costs
from softmoe.tables.report.numbers.costs import Cost
from softmoe.tables.report.numbers.groups import Group
from softmoe.tables.report.numbers.metric import Metric
from softmoe.tables.report.plots import scatter


def draw(
  groups: list[Group], cost: Cost, metric: Metric, styles: Styles
) -> list[Figure]:
  """Returns the figure; none if no group has both cost and quality."""
  shown = [g for g in groups if cost.of(g) and g.values(metric.name)]
  if not shown:
    return []
  factor, unit = cost.scale([cost.of(g) or 0 for g in shown])
  chart = scatter.Chart(
    label=f'{metric.label} against {cost.title}',
    x_title=f'{cost.title} ({unit})',
    y_title=metric.title,
    series=_series(shown, cost, metric, factor, styles),
    frontier=metric.direction,
  )
  legend = marks.legend(shown, styles)
  return [Figure(chart.label, scatter.draw(chart), legend)]


def _series(
  groups: list[Group],
  cost: Cost,
  metric: Metric,
  factor: float,
  styles: Styles,
) -> list[scatter.Series]:
  """Returns the lines of each model along which the cost grows."""
  found = []
  for model in dict.fromkeys(g.model for g in groups):
    for line in costs.lines([g for g in groups if g.model == model], cost):
      points = [
        marks.point(g, metric, (cost.of(g) or 0) / factor, _words(g, cost))
        for g in line
      ]
      found.append(scatter.Series(model, styles[model], points))
  return found


def _words(group: Group, cost: Cost) -> str:
  return f'{cost.title} {cost.text(cost.of(group) or 0)}'
