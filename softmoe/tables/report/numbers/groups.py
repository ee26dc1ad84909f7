"""Runs that differ in nothing but the seed, and what they are held against."""

import dataclasses
import math
from typing import Any

from softmoe.tables.report.numbers import statistics
from softmoe.tables.report.numbers.runs import Results, Run


@dataclasses.dataclass(frozen=True)
class Group:
  """The runs of a model at one value of each swept field, a seed each.

  Attributes:
    name: of each run, without its seed.
    runs: those that are finished.
    expected: how many the suite has.
    times: seconds of the model, timed alone; empty if it was not.
  """

  name: str
  runs: tuple[Run, ...]
  expected: int
  times: dict[str, Any]

  @property
  def model(self) -> str:
    """Returns the model's name."""
    return self.runs[0].model

  @property
  def sweep(self) -> dict[str, Any]:
    """Returns the value of each swept field that the model's name leaves open.

    Of 'soft, scale 4' the scale is none: it tells models apart, not settings.
    """
    said = self.model.split(', ')
    sweep = self.runs[0].sweep.items()
    return {f: value for f, value in sweep if _pair(f, value) not in said}

  @property
  def label(self) -> str:
    """Returns the model and its sweep: 'soft, width 32'."""
    return ', '.join([self.model, *pairs(self.sweep)])

  def values(self, metric: str) -> dict[int, float]:
    """Returns a metric by seed; a run that lacks it is left out."""
    return {r.seed: r.metrics[metric] for r in self.runs if metric in r.metrics}

  def estimate(self, metric: str) -> statistics.Estimate | None:
    """Returns the mean of a metric over seeds, None if no run has it."""
    return statistics.estimate(self.values(metric).values())

  def cost(self, name: str) -> float | None:
    """Returns a cost: a mean, since a seed may learn to want more experts."""
    values = [run.costs.get(name) for run in self.runs]
    known = [float(v) for v in values if isinstance(v, int | float)]
    return math.fsum(known) / len(known) if known else None


def pairs(sweep: dict[str, Any]) -> list[str]:
  """Returns the swept fields and their values, in words."""
  return [_pair(field, value) for field, value in sweep.items()]


def _pair(field: str, value: Any) -> str:
  return f'{short(field)} {value}'


def short(field: str) -> str:
  """Returns a config field's last word, for a reader: 'scale init'."""
  return field.rsplit('.', 1)[-1].replace('_', ' ')


def collect(results: Results) -> list[Group]:
  """Returns the groups that have a finished run.

  They stand in the suite's order, but models of one sweep beside each other.
  """
  runs: dict[str, list[Run]] = {}
  for run in results.runs:
    runs.setdefault(run.group, []).append(run)
  found = [
    Group(
      name=name,
      runs=tuple(sorted(those, key=lambda run: run.seed)),
      expected=sum(each.startswith(f'{name}-seed') for each in results.expected)
      or len(those),
      times=results.times.get(name, {}),
    )
    for name, those in runs.items()
  ]
  sweeps = list(dict.fromkeys(str(g.sweep) for g in found))
  return sorted(found, key=lambda g: sweeps.index(str(g.sweep)))


def baseline_of(
  group: Group, groups: list[Group], baseline: str
) -> Group | None:
  """Returns what a group is held against: the baseline's at the same sweep.

  A field that the baseline does not sweep, such as the experts of a model that
  has none, does not count.
  """
  if group.model == baseline:
    return None
  alike = [
    g
    for g in groups
    if g.model == baseline
    and all(group.sweep.get(f) == value for f, value in g.sweep.items())
  ]
  return alike[0] if len(alike) == 1 else None


def fields(groups: list[Group]) -> dict[str, list[Any]]:
  """Returns the values of each swept field, in order."""
  found: dict[str, list[Any]] = {}
  for group in groups:
    for field, value in group.sweep.items():
      values = found.setdefault(field, [])
      if value not in values:
        values.append(value)
  return {
    field: sorted(v) if all(isinstance(x, int | float) for x in v) else v
    for field, v in found.items()
  }
