"""A row for each threshold that was tried: quality and experts of a token.

Models whose threshold is their own, or that have none, stand beside them.
"""

from collections.abc import Iterable

from softmoe.tables.report import table
from softmoe.tables.report.numbers import statistics
from softmoe.tables.report.numbers.groups import Group, baseline_of
from softmoe.tables.report.numbers.metric import Metric
from softmoe.tables.report.sentences import NONE, apart, spread

_COUNTS = ('wanted', 'granted', 'executed')


def build(
  groups: list[Group], baseline: str, metric: Metric
) -> table.Table | None:
  """Returns the table, None if no threshold was tried."""
  settings = [(group, s) for group in groups for s in _settings(group, metric)]
  if not any(_at(s, metric).is_at_threshold for _, s in settings):
    return None
  names = table.names(groups)
  titles = [
    *(title for title, _ in names),
    *('threshold', metric.title, f'over {baseline}'),
    *(f'{count} experts' for count in _COUNTS),
    'MFLOP of experts, a token and layer',
  ]
  rows = [
    [
      *(cell(group) for _, cell in names),
      *_quality(group, groups, baseline, metric, setting),
      *_experts(group, setting),
    ]
    for group, setting in settings
  ]
  return table.Table(titles, rows, [group for group, _ in settings])


def _settings(group: Group, metric: Metric) -> list[str]:
  """Returns what its metrics begin with: each threshold, or else the split."""
  names = dict.fromkeys(name for run in group.runs for name in run.metrics)
  of_experts = [m for m in map(Metric, names) if m.name.endswith('moe/wanted')]
  tried = [m.split for m in of_experts if m.is_at_threshold]
  return tried or [m.split for m in of_experts if m.split == metric.split]


def _at(setting: str, metric: Metric) -> Metric:
  return Metric(f'{setting}/{metric.name.removeprefix(f"{metric.split}/")}')


def _quality(
  group: Group,
  groups: list[Group],
  baseline: str,
  metric: Metric,
  setting: str,
) -> Iterable[str]:
  at = _at(setting, metric)
  base = baseline_of(group, groups, baseline)
  theirs = base.values(metric.name) if base else {}
  gap = statistics.difference(group.values(at.name), theirs)
  yield setting.removeprefix('t') if at.is_at_threshold else NONE
  yield spread(group.estimate(at.name), at)
  yield apart(gap, at) if gap else NONE


def _experts(group: Group, setting: str) -> Iterable[str]:
  for count in _COUNTS:
    name = f'{setting}/moe/{count}'
    yield spread(group.estimate(name), Metric(name))
  flops = group.estimate(f'{setting}/moe/flops')
  yield f'{flops.mean / 1e6:.3g}' if flops else NONE
