"""All that a report says, before it is put on paper or on a page."""

import dataclasses
import pathlib

from softmoe.tables.report import facts, sentences, table
from softmoe.tables.report.figures import sections
from softmoe.tables.report.numbers import costs, groups, runs
from softmoe.tables.report.numbers.metric import Metric
from softmoe.tables.suite import Suite


@dataclasses.dataclass(frozen=True)
class Summary:
  """A report's content.

  Attributes:
    suite: its name.
    title: what it shows.
    metric: the main one.
    headlines: who does best beside the baseline, a sentence each.
    equal: at equal cost, a sentence each.
    status: how many runs are finished.
    notes: what is missing, left out or mixed.
    table: the main table.
    sections: of figures.
    runs: all finished runs.
    provenance: commit, machine, versions, data.
    commands: that make it again.
  """

  suite: str
  title: str
  metric: Metric
  headlines: list[sentences.Headline]
  equal: list[str]
  status: str
  notes: list[str]
  table: table.Table
  sections: list[sections.Section]
  runs: list[runs.Run]
  provenance: dict[str, str]
  commands: list[str]


def summarise(suite: Suite, name: str, folder: pathlib.Path) -> Summary:
  """Returns the report of what is finished in `folder`.

  Args:
    suite: whose runs they are.
    name: of the suite, or its file, as commands take it.
    folder: of its results, which has the suite's name.

  Raises:
    UserError: nothing is finished, or runs saw different data.
  """
  results = runs.read(folder, folder.name, [run.name for run in suite.runs])
  found = groups.collect(results)
  metric = Metric(suite.metric)
  return Summary(
    suite=name,
    title=suite.title,
    metric=metric,
    headlines=sentences.headlines(found, suite.baseline, metric),
    equal=[
      text
      for cost in costs.TRAINING
      for text in sentences.at_equal_cost(found, suite.baseline, cost, metric)
    ],
    status=sentences.completeness(found, results.expected),
    notes=[*results.problems, *sentences.lacks(found, suite.splits)],
    table=table.build(found, suite.baseline, metric),
    sections=sections.build(name, found, suite),
    runs=results.runs,
    provenance=facts.provenance(results),
    commands=facts.commands(name),
  )
