"""Which figures a report has, in which order, under which words."""

import dataclasses

from softmoe.tables.report import sentences, tried
from softmoe.tables.report.figures import (
  against_cost,
  by_field,
  by_model,
  by_threshold,
  marks,
)
from softmoe.tables.report.figures.marks import Figure
from softmoe.tables.report.numbers import costs
from softmoe.tables.report.numbers import groups as groups_lib
from softmoe.tables.report.numbers.costs import Cost
from softmoe.tables.report.numbers.groups import Group
from softmoe.tables.report.numbers.metric import Metric
from softmoe.tables.report.table import Table
from softmoe.tables.suite import Suite


@dataclasses.dataclass(frozen=True)
class Section:
  """Figures under one heading.

  Attributes:
    key: of the page's links.
    title: the heading.
    text: what they say or how to read them, a paragraph each.
    figures: may be empty.
    table: below them, if there is one.
  """

  key: str
  title: str
  text: list[str]
  figures: list[Figure]
  table: Table | None = None


def build(name: str, groups: list[Group], suite: Suite) -> list[Section]:
  """Returns the sections that have something to show.

  Args:
    name: of the suite, as commands take it.
    groups: of its finished runs.
    suite: whose they are.
  """
  maker = _Maker(name, groups, suite)
  flops = 'Quality against training FLOPs'
  inference = 'Quality against inference FLOPs'
  found = [
    maker.differences(),
    maker.against('training-flops', flops, costs.TRAINING_FLOPS),
    maker.against('inference-flops', inference, costs.INFERENCE_FLOPS),
    maker.seconds(),
    *(maker.by(field) for field in groups_lib.fields(groups)),
    maker.thresholds(),
    maker.models(),
    maker.curves(),
    maker.routing(),
  ]
  return [section for section in found if section.figures or section.text]


class _Maker:
  """Makes each section from the same groups in the same styles."""

  def __init__(self, name: str, groups: list[Group], suite: Suite):
    self._name, self._groups = name, groups
    self._baseline, self._metric = suite.baseline, Metric(suite.metric)
    self._splits = suite.splits
    self._styles = marks.styles(groups, suite.baseline)
    names = dict.fromkeys(n for g in groups for r in g.runs for n in r.metrics)
    found = [Metric(n) for n in dict.fromkeys([suite.metric, *names])]
    self._metrics = [m for m in found if not m.is_at_threshold]
    self._qualities = [
      m for m in self._metrics if m.is_quality or m == self._metric
    ]

  def differences(self) -> Section:
    figures = [
      figure
      for m in self._qualities
      for figure in by_model.differences(
        self._groups, self._baseline, m, self._styles
      )
    ]
    title = f'Difference to {self._baseline}'
    return Section('differences', title, [DIFFERENCES] * bool(figures), figures)

  def against(self, key: str, title: str, cost: Cost) -> Section:
    figures, text = self._against(cost)
    return Section(key, title, text, figures)

  def seconds(self) -> Section:
    figures, text = [], []
    for cost in (costs.TRAINING_SECONDS, costs.INFERENCE_SECONDS):
      more, words = self._against(cost)
      figures, text = figures + more, list(dict.fromkeys([*text, *words]))
    text = [SECONDS, *text] if text else [NO_TIMES.format(self._name)]
    return Section('seconds', 'Quality against seconds', text, figures)

  def by(self, field: str) -> Section:
    """Makes the plots of a field, if it has more than one value."""
    figures = []
    if len(groups_lib.fields(self._groups)[field]) > 1:
      for metric in self._qualities:
        figures += by_field.quality(field, self._groups, metric, self._styles)
      figures += by_field.speed(field, self._groups, self._styles)
    return Section(f'by-{field}', f'By {groups_lib.short(field)}', [], figures)

  def thresholds(self) -> Section:
    figures = by_threshold.draw(
      self._groups, self._baseline, self._metric, self._styles
    )
    text = [THRESHOLDS] * bool(figures)
    table = tried.build(self._groups, self._baseline, self._metric)
    return Section('thresholds', 'Thresholds tried', text, figures, table)

  def models(self) -> Section:
    figures = self._means(self._qualities)
    return Section('models', 'Every model', [MEANS] * bool(figures), figures)

  def curves(self) -> Section:
    figures = by_model.learning(self._groups, self._metric, self._styles)
    return Section(
      'curves', 'Learning curves', [CURVES] * bool(figures), figures
    )

  def routing(self) -> Section:
    told = [m for m in self._metrics if m.is_routing]
    figures = self._means([m for m in told if m.split == self._metric.split])
    text = [ROUTING] * bool(figures)
    return Section('routing', 'Tokens and experts', text, figures)

  def _against(self, cost: Cost) -> tuple[list[Figure], list[str]]:
    """Makes the plots of a cost, and what they say."""
    text = []
    if cost in costs.TRAINING:
      text = sentences.at_equal_cost(
        self._groups, self._baseline, cost, self._metric
      )
    if costs.are_same(self._groups, cost):
      return [], [*text, SAME.format(cost.title)]
    figures = [
      figure
      for m in self._qualities
      if m == self._metric or m.is_of_all(self._splits)
      for figure in against_cost.draw(self._groups, cost, m, self._styles)
    ]
    return figures, [*text, *[FRONTIER] * bool(figures)]

  def _means(self, metrics: list[Metric]) -> list[Figure]:
    return [
      figure
      for metric in metrics
      for figure in by_model.means(self._groups, metric, self._styles)
    ]


DIFFERENCES = (
  'Each run is held against the baseline of its own seed. Bars are 95 % '
  'intervals over seeds (Student t), small dots are seeds. Many rows are many '
  'chances: one interval that just leaves out zero is weak evidence.'
)
FRONTIER = (
  'Bars are 95 % intervals, small dots are seeds, the dashed steps are the '
  'Pareto frontier. Points of nearly equal cost stand side by side.'
)
SAME = 'All models have the same {}, within 2 %: there is nothing to plot.'
SECONDS = 'Seconds are those of each model timed alone, not of these runs.'
NO_TIMES = (
  'No times yet: python -m softmoe.tables time {} times each model alone. The '
  'wall times of runs that shared the machine are not plotted.'
)
THRESHOLDS = (
  'Each line is one trained model, run at several thresholds: the lower, the '
  'fewer experts a token wants. What the others do at their cost is above.'
)
MEANS = (
  'The mean of each, its 95 % interval, its seeds. The axis does not begin at '
  'zero: compare places, not lengths.'
)
CURVES = 'The strong line is the mean over seeds, each faint one is a seed.'
ROUTING = 'What the routers did on the split of the main metric.'
