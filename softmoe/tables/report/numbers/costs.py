"""What a model costs, four ways, and what each would reach at equal cost."""

import bisect
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from softmoe.tables.report.numbers import groups as groups_lib
from softmoe.tables.report.numbers import statistics
from softmoe.tables.report.numbers.groups import Group

SAME = 1.02  # costs that differ by less are equal
_FLOPS = (
  (1e18, 'exaFLOP'),
  (1e15, 'petaFLOP'),
  (1e12, 'teraFLOP'),
  (1e9, 'GFLOP'),
  (1e6, 'MFLOP'),
)
_SECONDS = (
  (3600.0, 'h'),
  (60.0, 'min'),
  (1.0, 's'),
  (1e-3, 'ms'),
  (1e-6, 'µs'),
)


@dataclasses.dataclass(frozen=True)
class Cost:
  """A way to count what a model costs.

  Attributes:
    title: what it is, such as 'training FLOPs'.
    is_measured: whether it takes times, of each model alone.
    of: of a group; None: not known.
  """

  title: str
  is_measured: bool
  of: Callable[[Group], float | None]

  def scale(self, values: Sequence[float]) -> tuple[float, str]:
    """Returns by what to divide values, and the unit that they then have."""
    top = max(values, default=0.0)
    steps = _SECONDS if self.is_measured else _FLOPS
    return next((step for step in steps if top >= step[0]), steps[-1])

  def text(self, value: float) -> str:
    """Returns one value with its unit: '1.23 petaFLOP'."""
    factor, unit = self.scale([value])
    return f'{value / factor:.3g} {unit}'


def _training_flops(group: Group) -> float | None:
  exa = group.cost('training_exaflop')
  return None if exa is None else exa * 1e18


def _inference_flops(group: Group) -> float | None:
  giga = group.cost('gflop')
  return None if giga is None else giga * 1e9


def _training_seconds(group: Group) -> float | None:
  """Returns the steps of a run times the seconds of one, timed alone."""
  steps = group.runs[0].steps
  if not group.times or steps is None:
    return None
  return float(group.times['train_step_seconds'] * steps)


def _inference_seconds(group: Group) -> float | None:
  """Returns the seconds an example, timed alone."""
  if not group.times:
    return None
  return float(group.times['inference_seconds'] / group.times['examples'])


TRAINING_FLOPS = Cost('training FLOPs', False, _training_flops)
INFERENCE_FLOPS = Cost('inference FLOPs', False, _inference_flops)
TRAINING_SECONDS = Cost('training seconds', True, _training_seconds)
INFERENCE_SECONDS = Cost('inference seconds', True, _inference_seconds)
TRAINING = (TRAINING_FLOPS, TRAINING_SECONDS)


def lines(groups: list[Group], cost: Cost) -> list[list[Group]]:
  """Returns one model's groups as lines along which the cost grows.

  A line follows the one swept field that changes the cost, such as a width;
  each value of the others, such as the start of a router's scale, has its own.
  Where several fields change it, or one of words, no line says what is between
  two groups.
  """
  priced = [g for g in groups if cost.of(g)]
  fields = groups_lib.fields(priced)
  dear = [f for f in fields if _is_priced(f, priced, cost)]
  along = dear if len(dear) == 1 and _are_numbers(fields[dear[0]]) else []
  found: dict[tuple, list[Group]] = {}
  for group in priced:
    rest = tuple((f, v) for f, v in group.sweep.items() if f not in along)
    found.setdefault(rest, []).append(group)
  return [
    sorted(line, key=lambda g: cost.of(g) or 0) for line in found.values()
  ]


def _is_priced(field: str, groups: list[Group], cost: Cost) -> bool:
  """Tells whether a field alone changes the cost."""
  alike: dict[tuple, list[float]] = {}
  for group in groups:
    rest = tuple((f, v) for f, v in group.sweep.items() if f != field)
    alike.setdefault(rest, []).append(cost.of(group) or 0)
  return not all(is_same(max(c), min(c)) for c in alike.values())


def _are_numbers(values: list[Any]) -> bool:
  return all(isinstance(value, int | float) for value in values)


def is_same(one: float, other: float) -> bool:
  """Tells whether two costs are equal, near enough."""
  return max(one, other) <= SAME * min(one, other)


def are_same(groups: list[Group], cost: Cost) -> bool:
  """Tells whether all groups whose cost is known cost the same."""
  known = [value for g in groups if (value := cost.of(g))]
  return bool(known) and is_same(max(known), min(known))


def at_cost(points: list[tuple[float, float]], cost: float) -> float | None:
  """Returns the quality at a cost, between points in the cost's logarithm.

  Args:
    points: cost and quality, by cost.
    cost: at which.

  Returns:
    the quality of the point that costs the same, or between the two points
    around it; None where there is no point on one side.
  """
  for each, quality in points:
    if is_same(each, cost):
      return quality
  i = bisect.bisect([each for each, _ in points], cost)
  if i in (0, len(points)):
    return None
  (low, start), (high, end) = points[i - 1], points[i]
  return start + (end - start) * math.log(cost / low) / math.log(high / low)


@dataclasses.dataclass(frozen=True)
class Verdict:
  """A model beside the baseline at the baseline's cost.

  Attributes:
    label: the model, and the fields that its line does not sweep.
    difference: of the same seeds; None: the model has no run on both sides.
    ratio: the cost of its nearest run over the baseline's.
    between: whether no run costs the same, and two around it were used.
  """

  label: str
  difference: statistics.Estimate | None
  ratio: float
  between: bool


def verdicts(
  base: Group, groups: list[Group], cost: Cost, metric: str
) -> list[Verdict]:
  """Returns what each other model reaches at the cost of `base`."""
  at = cost.of(base)
  if not at:
    return []
  models = dict.fromkeys(g.model for g in groups if g.model != base.model)
  return [
    _verdict(base, at, line, cost, metric)
    for model in models
    for line in lines([g for g in groups if g.model == model], cost)
  ]


def _verdict(
  base: Group, at: float, line: list[Group], cost: Cost, metric: str
) -> Verdict:
  theirs = base.values(metric)
  reached = {}
  for seed in theirs:
    points = [
      (cost.of(g) or 0.0, g.values(metric)[seed])
      for g in line
      if seed in g.values(metric)
    ]
    quality = at_cost(points, at)
    if quality is not None:
      reached[seed] = quality
  nearest = min((cost.of(g) or 0.0 for g in line), key=lambda c: abs(c - at))
  apart = statistics.difference(reached, theirs)
  return Verdict(_label(line), apart, nearest / at, not is_same(nearest, at))


def _label(line: list[Group]) -> str:
  """Returns the model and what all groups of its line have in common."""
  first, *others = line
  shared = {
    field: value
    for field, value in first.sweep.items()
    if all(g.sweep.get(field) == value for g in others)
  }
  return ', '.join([first.model, *groups_lib.pairs(shared)])
