"""From a published row to the config of its model.

Axes in formulas: `S` tokens of a group, `E` experts, `C` tokens that an expert
keeps of a group, `d` width.
"""

import functools
import math
import runpy
from collections.abc import Callable
from typing import Any

import ml_collections

from softmoe import experiment as experiment_lib
from softmoe.models import vit
from softmoe.process import config_flag
from softmoe.tables.cost import published

ROUTERS = {
  'soft': 'soft',
  'experts': 'experts_choice',
  'tokens': 'tokens_choice',
}


def config(row: published.Row) -> Any:
  """Returns the checked config of a row's model, that of `configs/jft4b.py`.

  Rows of one model have one config, whatever they say of their training.
  """
  config = _base()('vit-s16')
  config.model.update(vit.variant(row.model))
  config.name = f'{row.model} {row.routing}'
  if row.routing != 'dense':
    config.model.moe.update(_moe(row, config.model))
  return experiment_lib.parse(config)


def capacity(row: published.Row) -> int | None:
  """Returns C, the tokens of a group that an expert of a row keeps.

  That is S K c / E to the nearest integer, 1 at least. The paper does not say
  how it rounds; the authors' code can round up, to a multiple of 4 or not, or
  to the nearest integer, and of these the last alone gives the published
  exaFLOP. The routers of this package round up.

  Returns:
    None for a model without buffers.
  """
  if row.c is None or not row.group or not row.experts:
    return None
  return max(round(row.group * (row.k or 1) * row.c / row.experts), 1)


def one_hot_flops(row: published.Row) -> int:
  """Returns the FLOPs an image of dispatch and combine as one-hot products.

  The authors' code multiplies the (S, d) tokens of a group by a one-hot array
  (S, E, C), and the (E, C, d) outputs by the same array times the gates. Each
  product is 2 S E C d FLOPs a group, so both are 4 E C d a token. This package
  gathers and scatters instead.
  """
  kept = capacity(row)
  if kept is None or not row.experts:
    return 0
  size = vit.variant(row.model)
  a_token = 4 * row.experts * kept * size['width']
  return a_token * num_tokens(row) * len(vit.last_half(size['depth']))


def num_tokens(row: published.Row) -> int:
  """Returns the tokens of an image of 224 x 224 pixels."""
  return (224 // vit.variant(row.model)['patch_size'][0]) ** 2


@functools.cache
def _base() -> Callable[[str], ml_collections.ConfigDict]:
  return runpy.run_path(config_flag.find('config', 'jft4b'))['get_config']


def _moe(row: published.Row, model: Any) -> dict[str, Any]:
  group = row.group or num_tokens(row)
  fields = dict(
    router=ROUTERS[row.routing],
    blocks=vit.last_half(model.depth),
    num_experts=row.experts,
    group_size=group // num_tokens(row),
  )
  if row.routing == 'soft':
    return fields
  if row.k:
    fields |= dict(k=row.k, batch_priority=True)
  return fields | dict(capacity_factor=_factor(row, group))


def _factor(row: published.Row, group: int) -> float:
  """Returns the capacity factor with which routers that round up keep C."""
  exact = (capacity(row) or 0) * (row.experts or 0) / (group * (row.k or 1))
  return math.floor(exact * 1e6) / 1e6
