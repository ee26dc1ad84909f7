"""Blocks counted one by one, against the program of the whole model."""

import pytest

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe.costs import by_block, flops
from softmoe.tables.cost import models, published
from softmoe.tasks import classification


def config(**moe):
  config = config_lib.default(classification.Config)
  config.data.update(image_size=(32, 32), channels=3)
  config.model.update(patch_size=(8, 8), depth=4, width=32, mlp_dim=64)
  config.model.update(num_heads=2)
  if moe:
    config.model.moe.update(blocks=(1, 3), num_experts=4, **moe)
  return experiment_lib.parse(config)


def check(config):
  whole, parts = flops.forward(config), by_block.forward(config)
  for name in ('fewest', 'most', 'share'):
    expected = pytest.approx(getattr(whole, name), rel=1e-4)
    assert getattr(parts, name) == expected, name
  assert parts.active == whole.active
  assert parts.num_experts == whole.num_experts
  assert parts.is_fixed == whole.is_fixed


@pytest.mark.parametrize(
  'moe',
  [
    {},
    dict(slots_per_expert=3),
    dict(router='experts_choice', capacity_factor=1.0, group_size=2),
    dict(router='tokens_choice', k=2, capacity_factor=1.0, group_size=2),
    dict(router='threshold'),
  ],
  ids=['dense', 'soft', 'experts', 'tokens', 'dropless'],
)
def test_each_kind_of_block_against_the_lowered_program(moe):
  check(config(**moe))


# The cheapest run of table 9 of each kind.
@pytest.mark.slow
@pytest.mark.parametrize('ref', [1, 2, 3, 10])
def test_the_papers_models_against_the_lowered_program(ref):
  (row,) = [row for row in published.rows() if row.ref == ref]
  check(models.config(row))
