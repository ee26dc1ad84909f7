"""The main table: a row a group, the same cells on paper and on the page."""

import dataclasses
from collections.abc import Callable

from softmoe.tables.report.numbers import costs, statistics
from softmoe.tables.report.numbers import groups as groups_lib
from softmoe.tables.report.numbers.costs import Cost
from softmoe.tables.report.numbers.groups import Group, baseline_of
from softmoe.tables.report.numbers.metric import Metric
from softmoe.tables.report.sentences import NONE, apart, spread

Column = tuple[str, Callable[[Group], str]]


@dataclasses.dataclass(frozen=True)
class Table:
  """Titles and cells; the first column names the model.

  Attributes:
    titles: of the columns.
    rows: the cells of each group.
    groups: whose row it is.
  """

  titles: list[str]
  rows: list[list[str]]
  groups: list[Group]


def build(groups: list[Group], baseline: str, metric: Metric) -> Table:
  """Returns quality, difference to the baseline, costs, other metrics."""
  columns = [
    *names(groups),
    *_quality(groups, metric),
    *_differences(groups, baseline, metric),
    *_costs(groups),
    *((m.title, lambda g, m=m: _mean(g, m)) for m in _others(groups, metric)),
  ]
  rows = [[cell(group) for _, cell in columns] for group in groups]
  return Table([title for title, _ in columns], rows, groups)


def paired(
  group: Group, groups: list[Group], baseline: str, metric: Metric
) -> statistics.Estimate | None:
  """Returns the difference to the baseline's runs of the same seeds."""
  base = baseline_of(group, groups, baseline)
  if base is None:
    return None
  ours, theirs = group.values(metric.name), base.values(metric.name)
  return statistics.difference(ours, theirs)


def names(groups: list[Group]) -> list[Column]:
  """Returns the columns that tell groups apart: model and swept fields."""
  swept = [
    (groups_lib.short(field), lambda g, f=field: str(g.sweep.get(f, NONE)))
    for field in groups_lib.fields(groups)
  ]
  return [('model', lambda g: g.model), *swept]


def _quality(groups: list[Group], metric: Metric) -> list[Column]:
  columns: list[Column] = [
    ('runs', lambda g: f'{len(g.runs)} of {g.expected}'),
    (metric.title, lambda g: _mean(g, metric)),
  ]
  if any(len(g.runs) > 1 for g in groups):
    columns.append(('worst seed', lambda g: _end(g, metric, 0)))
    columns.append(('best seed', lambda g: _end(g, metric, -1)))
  return columns


def _mean(group: Group, metric: Metric) -> str:
  """Returns the mean; where some runs lack it, of how many it is."""
  n = len(group.values(metric.name))
  note = f' (n={n})' if 0 < n < len(group.runs) else ''
  return spread(group.estimate(metric.name), metric) + note


def _end(group: Group, metric: Metric, end: int) -> str:
  """Returns the value of the worst seed (end 0) or the best (-1)."""
  values = group.values(metric.name)
  if not values:
    return NONE
  seed = sorted(values, key=lambda s: values[s] * metric.direction)[end]
  return f'{metric.text(values[seed])} (seed {seed})'


def _differences(
  groups: list[Group], baseline: str, metric: Metric
) -> list[Column]:
  found = {g.name: paired(g, groups, baseline, metric) for g in groups}
  if not any(found.values()):
    return []

  def gap(group: Group) -> str:
    estimate = found[group.name]
    return apart(estimate, metric) if estimate else NONE

  def pairs(group: Group) -> str:
    estimate = found[group.name]
    return str(estimate.n) if estimate else NONE

  return [(f'over {baseline}', gap), ('pairs', pairs)]


def _costs(groups: list[Group]) -> list[Column]:
  unit = groups[0].runs[0].costs.get('unit', 'image')
  counts = {'parameters': 'params', 'active': 'active_params'}
  return [
    *((t, lambda g, key=key: _count(g.cost(key))) for t, key in counts.items()),
    *_scaled(groups, costs.INFERENCE_FLOPS, f'{{}}/{unit}'),
    *_scaled(groups, costs.TRAINING_FLOPS, 'training {}'),
    *_scaled(groups, costs.INFERENCE_SECONDS, '{}/example'),
    *_scaled(groups, costs.TRAINING_SECONDS, 'training {}'),
  ]


def _scaled(groups: list[Group], cost: Cost, title: str) -> list[Column]:
  """Returns a column of a cost in a unit that suits all rows."""
  values = {g.name: cost.of(g) for g in groups}
  known = [value for value in values.values() if value]
  if not known:
    return []
  factor, unit = cost.scale(known)

  def cell(group: Group) -> str:
    value = values[group.name]
    return NONE if value is None else f'{value / factor:.3g}'

  return [(title.format(unit), cell)]


def _count(value: float | None) -> str:
  return NONE if value is None else f'{value:,.0f}'


def _others(groups: list[Group], metric: Metric) -> list[Metric]:
  """Returns qualities on all splits, and what else is told of the main one.

  Thresholds that were tried have a table and a plot of their own.
  """
  names = dict.fromkeys(n for g in groups for r in g.runs for n in r.metrics)
  return [
    m
    for m in map(Metric, names)
    if m != metric and not m.is_at_threshold
    if m.is_quality or m.split == metric.split and (m.is_routing or m.is_loss)
  ]
