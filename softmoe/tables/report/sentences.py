"""What the figures say, in sentences computed from them."""

import dataclasses
from collections.abc import Collection, Iterable

from softmoe.tables.report.numbers import costs, statistics
from softmoe.tables.report.numbers.costs import Cost
from softmoe.tables.report.numbers.groups import Group, baseline_of
from softmoe.tables.report.numbers.metric import Metric
from softmoe.tables.report.numbers.statistics import Estimate

NONE = '–'
_MOST = 5  # models that a sentence names


@dataclasses.dataclass(frozen=True)
class Headline:
  """A sentence whose middle is what a reader looks for: the difference."""

  lead: str
  gap: str
  rest: str

  def __str__(self) -> str:
    return f'{self.lead} {self.gap} {self.rest}'


def spread(estimate: Estimate | None, metric: Metric) -> str:
  """Returns a mean with its interval: '78.40 ± 1.02'."""
  if estimate is None:
    return NONE
  half = '' if estimate.half is None else f' ± {metric.text(estimate.half)}'
  return metric.text(estimate.mean) + half


def apart(estimate: Estimate, metric: Metric) -> str:
  """Returns a difference with its sign and interval: '+3.10 ± 1.02'."""
  half = '' if estimate.half is None else f' ± {metric.text(estimate.half)}'
  return metric.text(estimate.mean, sign=True) + half


def difference(estimate: Estimate | None, metric: Metric) -> str:
  """Returns a paired difference, its interval, and whether it says anything."""
  if estimate is None:
    return 'no seed in common'
  unit = f' {metric.unit}'.rstrip()
  pairs = f'{estimate.n} pairs of seeds'
  if estimate.half is None:
    pairs = 'one seed: no interval'
  elif not estimate.is_told_from_zero:
    pairs += ', not told from zero'
  return f'{apart(estimate, metric)}{unit} ({pairs})'


def headlines(
  groups: list[Group], baseline: str, metric: Metric
) -> list[Headline]:
  """Returns a sentence for each group of the baseline: who does best there.

  Without a baseline it is one for each model: which of its settings does best.
  """
  shown = [g for g in groups if g.values(metric.name)]
  if not baseline:
    models = dict.fromkeys(g.model for g in shown)
    return [_best([g for g in shown if g.model == m], metric) for m in models]
  held: dict[str, tuple[Group, list[Group]]] = {}
  for group in shown:
    base = baseline_of(group, shown, baseline)
    if base:
      held.setdefault(base.name, (base, []))[1].append(group)
  return [_headline(base, others, metric) for base, others in held.values()]


def _best(groups: list[Group], metric: Metric) -> Headline:
  best = max(groups, key=lambda g: _mean(g, metric))
  rank = f', the best of {len(groups)}' if len(groups) > 1 else ''
  n = len(best.values(metric.name))
  return Headline(
    lead=f'{best.label}{rank}:',
    gap=spread(best.estimate(metric.name), metric),
    rest=f'{metric.title}, {n} seed{"s" if n > 1 else ""}.',
  )


def _headline(base: Group, others: list[Group], metric: Metric) -> Headline:
  best = max(others, key=lambda g: _mean(g, metric))
  gap = statistics.difference(
    best.values(metric.name), base.values(metric.name)
  )
  words, bracket, pairs = difference(gap, metric).partition(' (')
  ours, theirs = (spread(g.estimate(metric.name), metric) for g in (best, base))
  unit = ' %' if metric.is_percent else ''
  rank = f', the best of {len(others)},' if len(others) > 1 else ''
  return Headline(
    lead=f'{best.label}{rank} beside {base.label}:',
    gap=words,
    rest=f'{bracket}{pairs} of {metric.label}, {ours} against {theirs}{unit}'
    f'{_price(best, base)}.'.strip(),
  )


def _mean(group: Group, metric: Metric) -> float:
  estimate = group.estimate(metric.name)
  return estimate.mean * metric.direction if estimate else float('-inf')


def _price(group: Group, base: Group) -> str:
  """Returns what it costs beside the baseline, in FLOPs and in seconds."""
  parts = []
  for cost in costs.TRAINING:
    ours, theirs = cost.of(group), cost.of(base)
    if ours and theirs:
      parts.append(f'{ours / theirs:.2f} times its {cost.title}')
  return f', at {" and ".join(parts)}' if parts else ''


def at_equal_cost(
  groups: list[Group], baseline: str, cost: Cost, metric: Metric
) -> list[str]:
  """Returns a sentence for each group of the baseline that has the cost."""
  found = []
  for base in groups:
    if base.model == baseline and base.values(metric.name):
      verdicts = costs.verdicts(base, groups, cost, metric.name)
      if verdicts:
        found.append(_at_cost(base, verdicts, cost, metric))
  return found


def _at_cost(
  base: Group, verdicts: list[costs.Verdict], cost: Cost, metric: Metric
) -> str:
  told = [(v.difference.mean, v) for v in verdicts if v.difference]
  order = sorted(told, key=lambda t: -t[0] * metric.direction)
  parts = [_verdict(v, metric) for _, v in order[:_MOST]]
  if len(order) > _MOST:
    parts.append(f'{len(order) - _MOST} others do worse')
  said = '; '.join(parts) or 'no other model has runs on both sides of it'
  off = [v for v in verdicts if v.difference is None]
  nearest = ', '.join(f'{v.label} ({v.ratio:.2f} times)' for v in off[:_MOST])
  more = ', …' if len(off) > _MOST else ''
  rest = f' Not compared, since no run is near: {nearest}{more}.' if off else ''
  where = f'{base.label} ({cost.text(cost.of(base) or 0)})'
  return f'At the {cost.title} of {where}: {said}.{rest}'


def _verdict(verdict: costs.Verdict, metric: Metric) -> str:
  between = ', between its runs' if verdict.between else ''
  return f'{verdict.label} {difference(verdict.difference, metric)}{between}'


def completeness(groups: list[Group], expected: Iterable[str]) -> str:
  """Returns how many runs are finished, and where some are missing."""
  expected = list(expected)
  finished = {run.name for g in groups for run in g.runs}
  stems: dict[str, list[str]] = {}
  for name in expected:
    stems.setdefault(name.rpartition('-seed')[0], []).append(name)
  lacking = [
    f'{stem}: {sum(n in finished for n in names)} of {len(names)}'
    for stem, names in stems.items()
    if not finished.issuperset(names)
  ]
  tail = f' ({"; ".join(lacking)})' if lacking else ''
  return f'{len(finished)} of {len(expected)} runs are finished{tail}.'


def lacks(groups: list[Group], splits: Collection[str]) -> list[str]:
  """Returns a sentence for each metric that some runs lack.

  What a router tells is missed only where another run of its model has it.

  Args:
    groups: of the suite.
    splits: of the suite; what else its evaluators measure is not missed.
  """
  names = dict.fromkeys(n for g in groups for r in g.runs for n in r.metrics)
  asked = [m for m in map(Metric, names) if m.is_of_all(splits)]
  return list(filter(None, (_lack(m, groups) for m in asked)))


def _lack(metric: Metric, groups: list[Group]) -> str:
  having = {g.model for g in groups if g.values(metric.name)}
  asked = [
    run
    for g in groups
    for run in g.runs
    if g.model in having or not metric.is_of_experts
  ]
  without = [run.name for run in asked if metric.name not in run.metrics]
  if not without:
    return ''
  some = ', '.join(without[:3]) + (', …' if len(without) > 3 else '')
  return (
    f'{metric.label}: {len(without)} of {len(asked)} runs lack it ({some}).'
  )
