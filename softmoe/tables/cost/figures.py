"""Our figures of a published row, from the model itself, and the differences.

The paper's exaFLOP are 1.5 times GFLOP times images, of its own GFLOP: three
times the multiply-adds of a forward pass, where its GFLOP count a multiply and
an add as two. Training computes 3 times GFLOP times images.
"""

import dataclasses
import functools
import math
from typing import Any

import jax

from softmoe import experiment as experiment_lib
from softmoe.costs import by_block, flops
from softmoe.tables.cost import models, published

PAPER = 1.5  # exaFLOP over GFLOP times images, in the paper's tables 1 and 8
TRUE = 3.0  # a backward pass is two forward passes
# Forward and backward each product of two arrays is three; that of dispatch is
# two, since its one-hot array is of booleans and has no gradient.
ONE_HOT = 5 / 6
TOLERANCE = 0.05
_UNITS = {'M': 1e6, 'B': 1e9}

Figures = dict[str, Any]


def of_table(table: int) -> list[Figures]:
  """Returns the figures of every row of a table, in its order."""
  return [of_row(row) for row in published.rows() if table in row.tables]


def of_row(row: published.Row) -> Figures:
  """Returns what is published of a row, ours, and the difference.

  Differences are shares of the published figure, None where there is none.
  `gflop_one_hot` and `exaflop_one_hot` have dispatch and combine as one-hot
  products; where a row has no buffers they are those without.
  """
  params, active, forward = _measure(models.config(row))
  one_hot = models.one_hot_flops(row)
  exa = lambda passes, flops_: passes * flops_ * row.images / 1e18
  figures = dict(
    model=row.model,
    routing=row.routing,
    experts=row.experts,
    ref=row.ref,
    group=row.group,
    k=row.k,
    c=row.c,
    capacity=models.capacity(row),
    steps=row.steps,
    cooldown=row.cooldown,
    params_paper=row.params,
    params=params,
    params_same_digits=same_digits(params, row.params),
    params_active=active,
    gflop_paper=row.gflop,
    gflop=forward / 1e9,
    gflop_one_hot=(forward + one_hot) / 1e9,
    exaflop_paper=row.exaflop,
    exaflop=exa(PAPER, forward),
    exaflop_one_hot=exa(PAPER, forward + ONE_HOT * one_hot),
    exaflop_true=exa(TRUE, forward),
    tpuv3_days_paper=row.days,
  )
  figures |= _differences(figures)
  return figures | {'note': note(row, figures)}


@functools.cache
def _measure(config: Any) -> tuple[int, int, float]:
  """Returns parameters, active parameters and FLOPs an image of a model."""
  experiment, cost = _build(_shared(config)), by_block.forward(config)
  active = flops.active_params(experiment, cost)
  return experiment.num_params(), active, cost.flops()


_build = functools.cache(
  lambda config: experiment_lib.build(config, jax.devices()[:1])
)


def _shared(config: Any) -> Any:
  """Returns a config with the same parameters for all groups, K and C."""
  moe = config.model.moe
  if moe.capacity_factor:
    moe = dataclasses.replace(moe, group_size=1, k=1, capacity_factor=1.0)
  model = dataclasses.replace(config.model, moe=moe)
  return dataclasses.replace(config, model=model)


def _differences(figures: Figures) -> Figures:
  pairs = dict(
    params=(figures['params'], _count(figures['params_paper'])),
    gflop=(figures['gflop'], figures['gflop_paper']),
    exaflop=(figures['exaflop'], figures['exaflop_paper']),
    exaflop_one_hot=(figures['exaflop_one_hot'], figures['exaflop_paper']),
  )
  return {
    f'{name}_difference': None if theirs is None else ours / theirs - 1
    for name, (ours, theirs) in pairs.items()
  }


def _count(printed: str | None) -> float | None:
  return None if printed is None else float(printed[:-1]) * _UNITS[printed[-1]]


def same_digits(value: int, printed: str | None) -> bool | None:
  """Tells whether a count has the digits that are printed, as '33M' or '1.8B'.

  The paper cuts off (108M are 108.6M, 54.1B 54.18B), but for the 669M of ViT
  H/14, which are 668.7M: both are the same digits here.
  """
  if printed is None:
    return None
  number, unit = printed[:-1], _UNITS[printed[-1]]
  decimals = len(number.partition('.')[2])
  digits = value / unit * 10**decimals
  theirs = int(number.replace('.', ''))
  return theirs in (math.floor(digits), round(digits))


# --- Why a row differs.


def note(row: published.Row, figures: Figures) -> str:
  """Returns why a row's exaFLOP differ by more than 5 %, '' if they do not."""
  if abs(figures['exaflop_one_hot_difference']) > TOLERANCE:
    return _surplus(row, figures) + _twin(row)
  if abs(figures['exaflop_difference']) > TOLERANCE:
    added = figures['exaflop_one_hot'] - figures['exaflop']
    share = added / figures['exaflop_paper']
    return f"one-hot products are {share:.0%} of the paper's figure"
  return ''


def _surplus(row: published.Row, figures: Figures) -> str:
  """Returns the rest as a share of a forward pass, in the paper's unit."""
  rest = figures['exaflop_paper'] - figures['exaflop_one_hot']
  forward = PAPER / TRUE * figures['gflop_one_hot'] * row.images / 1e9
  return f'{rest / forward:.0%} of a forward pass that the model does not have'


def _twin(row: published.Row) -> str:
  """Returns what a longer run of the same model says, if there is one."""
  model = lambda r: (r.model, r.routing, r.experts)
  for other in published.rows():
    if other.ref is None and model(other) == model(row):
      scaled = other.exaflop * row.steps / other.steps
      return f'; by table 8 it would be {scaled:.1f}'
  return ''
