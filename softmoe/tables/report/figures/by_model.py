"""A row or a curve a model: differences, means, learning curves."""

import dataclasses

from softmoe.tables.report import sentences, table
from softmoe.tables.report.figures import marks
from softmoe.tables.report.figures.marks import Figure, Styles
from softmoe.tables.report.numbers import groups as groups_lib
from softmoe.tables.report.numbers.groups import Group
from softmoe.tables.report.numbers.metric import Metric
from softmoe.tables.report.plots import curves, rows


def means(groups: list[Group], metric: Metric, styles: Styles) -> list[Figure]:
  """Returns a row for the mean of each group that has the metric."""
  made = [
    rows.Row(
      g.label,
      sentences.spread(g.estimate(metric.name), metric),
      styles[g.model],
      marks.point(g, metric, 0),
    )
    for g in groups
    if g.values(metric.name)
  ]
  if not made:
    return []
  return [Figure(metric.label, rows.draw(metric.label, metric.title, made), [])]


def differences(
  groups: list[Group], baseline: str, metric: Metric, styles: Styles
) -> list[Figure]:
  """Returns a row for the difference of each group to the baseline."""
  found = [_difference(g, groups, baseline, metric, styles) for g in groups]
  made = [row for row in found if row]
  if not made:
    return []
  title = f'{metric.label} over {baseline}'
  axis = ' '.join(filter(None, [metric.unit, f'over {baseline}']))
  return [Figure(title, rows.draw(title, axis, made, zero=True), [])]


def _difference(
  group: Group,
  groups: list[Group],
  baseline: str,
  metric: Metric,
  styles: Styles,
) -> rows.Row | None:
  base = groups_lib.baseline_of(group, groups, baseline)
  gap = table.paired(group, groups, baseline, metric)
  if base is None or gap is None:
    return None
  ours, theirs = group.values(metric.name), base.values(metric.name)
  gaps = {s: ours[s] - theirs[s] for s in ours if s in theirs}
  point = marks.point(
    group,
    metric,
    0,
    f'beside {base.label}: {sentences.difference(gap, metric)}',
  )
  point = dataclasses.replace(
    point,
    y=gap.mean * metric.factor,
    half=None if gap.half is None else gap.half * metric.factor,
    seeds=[
      (
        v * metric.factor,
        f'{group.label}, seed {s}\n{metric.text(v, sign=True)}',
      )
      for s, v in gaps.items()
    ],
  )
  words = sentences.apart(gap, metric)
  return rows.Row(group.label, words, styles[group.model], point)


def learning(
  groups: list[Group], metric: Metric, styles: Styles
) -> list[Figure]:
  """Returns the loss and the metric over steps, for each sweep."""
  sweeps: dict[str, list[Group]] = {}
  for group in groups:
    at = ', '.join(groups_lib.pairs(group.sweep))
    sweeps.setdefault(at, []).append(group)
  evaluated = Metric(f'eval/{metric.name.rpartition("/")[2]}')
  return [
    figure
    for at, those in sweeps.items()
    for each in dict.fromkeys([Metric('loss'), evaluated])
    for figure in _learning(those, each, at, styles)
  ]


def _learning(
  groups: list[Group], metric: Metric, at: str, styles: Styles
) -> list[Figure]:
  found = [
    curves.of_group(g, metric.name, styles[g.model], metric.factor)
    for g in groups
  ]
  made = [curve for curve in found if curve.runs]
  if not made:
    return []
  name = metric.label if '/' in metric.name else f'training {metric.label}'
  title = f'{name}, {at}' if at else name
  axis = f'{name} (%)' if metric.is_percent else name
  picture = curves.draw(title, axis, made, metric.direction < 0)
  return [Figure(title, picture, marks.legend(groups, styles))]
