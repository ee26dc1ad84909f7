"""From groups of runs to what is drawn of them: points, styles, figures."""

import dataclasses
from collections.abc import Iterable

from softmoe.tables.report import sentences
from softmoe.tables.report.numbers.groups import Group
from softmoe.tables.report.numbers.metric import Metric
from softmoe.tables.report.plots.scatter import Point
from softmoe.tables.report.plots.svg import Length, Style

Styles = dict[str, Style]  # by the model's name


@dataclasses.dataclass(frozen=True)
class Figure:
  """A plot.

  Attributes:
    title: above it.
    picture: as SVG.
    legend: a style and its words each; empty where the picture says it.
  """

  title: str
  picture: str
  legend: list[tuple[Style, str]]


def styles(groups: list[Group], baseline: str) -> Styles:
  """Returns a style for each model; the baseline's is grey."""
  models = dict.fromkeys(g.model for g in groups)
  others = [model for model in models if model != baseline]
  found = {model: Style.of(i) for i, model in enumerate(others)}
  return {baseline: Style.of_baseline()} | found


def legend(groups: Iterable[Group], of: Styles) -> list[tuple[Style, str]]:
  """Returns the legend of the models of `groups`."""
  return [(of[m], m) for m in dict.fromkeys(g.model for g in groups)]


def point(group: Group, metric: Metric, x: Length, words: str = '') -> Point:
  """Returns a group's mean at `x`; it tells its runs, and `words`."""
  estimate = group.estimate(metric.name)
  assert estimate is not None
  names = {run.seed: run.name for run in group.runs}
  values = group.values(metric.name)
  seeds = [
    (v * metric.factor, f'{names[seed]}\n{metric.title} {metric.text(v)}')
    for seed, v in values.items()
  ]
  quality = f'{metric.title} {sentences.spread(estimate, metric)}'
  runs = [f'{names[seed]}: {metric.text(v)}' for seed, v in values.items()]
  lines = [group.label, f'{quality}, n={estimate.n}', words, *runs]
  half = None if estimate.half is None else estimate.half * metric.factor
  return Point(
    x=x,
    y=estimate.mean * metric.factor,
    half=half,
    seeds=seeds,
    tip='\n'.join(filter(None, lines)),
    link=f'group-{group.name}',
  )
