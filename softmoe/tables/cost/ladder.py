"""What XMoE's language models cost: equal parameters in ever smaller experts.

Yang et al. 2024, https://arxiv.org/abs/2403.18926: GPT-2 small, every second
block a mixture, with 8 to 64 experts that together are eight times as wide as
the dense MLP. The models are those of `configs/lm.py`.
"""

import functools
import runpy
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections

from softmoe import experiment as experiment_lib
from softmoe.costs import by_block, flops
from softmoe.process import config_flag
from softmoe.tables.cost import figures


class Row(NamedTuple):
  """One model.

  Attributes:
    name: as the table shows it.
    argument: of `configs/lm.py`.
    experts: of each MoE layer; None: there is none.
    k: experts that a token takes; of XMoE, whose tokens decide, on average.
    reference: parameters by the sizes in the authors' scripts.
  """

  name: str
  argument: str
  experts: int | None
  k: int | None
  reference: str


ROWS = (
  Row('Dense', 'dense', None, None, '124.5M'),
  Row('Top-1', 'top1', 8, 1, '322.9M'),
  Row('Top-2', 'topk', 16, 2, '322.9M'),
  Row('Top-4', 'topk', 32, 4, '323.1M'),
  Row('Top-8', 'topk', 64, 8, '323.4M'),
  Row('XMoE', 'xmoe', 64, 8, '323.4M'),
  Row('XMoE', 'xmoe', 64, 4, '323.4M'),
  Row('XMoE', 'xmoe', 64, 2, '323.4M'),
)


def of_all() -> list[figures.Figures]:
  """Returns the figures of every model."""
  return [of_row(row) for row in ROWS]


def of_row(row: Row) -> figures.Figures:
  """Returns parameters and the cost of a token, in a context of 1,024."""
  config = make_config(row)
  params, cost = _measure(config)
  moe, forward = config.model.moe, cost.flops(row.k and float(row.k))
  return dict(
    model=row.name,
    experts=row.experts,
    hidden=moe.expert_dim if row.experts else config.model.mlp_dim,
    k=row.k,
    params_reference=row.reference,
    params=params,
    params_same_digits=figures.same_digits(params, row.reference),
    mflop=forward / 1e6,
    mflop_experts=(forward - cost.fewest) / 1e6,
  )


def make_config(row: Row) -> Any:
  """Returns the checked config of a model."""
  config = _base()(row.argument)
  if row.experts:
    config.model.moe.num_experts = row.experts
  if row.argument == 'topk':
    config.model.moe.k = row.k
  return experiment_lib.parse(config)


@functools.cache
def _measure(config: Any) -> tuple[int, flops.Cost]:
  experiment = experiment_lib.build(config, jax.devices()[:1])
  return experiment.num_params(), by_block.forward(config)


@functools.cache
def _base() -> Callable[[str], ml_collections.ConfigDict]:
  return runpy.run_path(config_flag.find('config', 'lm'))['get_config']
