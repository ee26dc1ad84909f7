"""From a row to its model: sizes, buffers, one-hot products."""

import jax
import pytest
from jax import numpy as jnp

from softmoe import experiment as experiment_lib
from softmoe.moe.routers import gating
from softmoe.plan import flop_count
from softmoe.tables.cost import figures, models, published

ROWS = published.rows()


def run(ref):
  (row,) = [row for row in ROWS if row.ref == ref]
  return row


@pytest.mark.parametrize(
  'sizes, number',
  [('H/14', 3), pytest.param('S/16 S/14 B/16 L/16', 7, marks=pytest.mark.slow)],
)
def test_every_printed_number_of_parameters(sizes, number):
  rows = [row for row in ROWS if row.params and row.model in sizes.split()]
  printed = {models.config(row): row.params for row in rows}
  assert len(printed) == number
  for config, params in printed.items():
    ours = experiment_lib.build(config, jax.devices()[:1]).num_params()
    assert figures.same_digits(ours, params), (config.name, ours, params)


@pytest.mark.parametrize(
  'value, printed, same',
  [
    (108_600_000, '108M', True),  # cut off
    (668_700_000, '669M', True),  # rounded
    (109_600_000, '108M', False),
    (54_180_000_000, '54.1B', True),
    (54_260_000_000, '54.1B', False),
  ],
)
def test_same_digits(value, printed, same):
  assert figures.same_digits(value, printed) is same


def test_routers_keep_the_buffers_that_the_figures_are_of():
  sparse = [row for row in ROWS if row.c]
  assert len(sparse) == 81
  for row in sparse:
    moe = models.config(row).model.moe
    kept = gating.capacity(
      row.group, row.experts, moe.capacity_factor, choices=moe.k
    )
    assert kept == models.capacity(row), row


@pytest.mark.parametrize(
  'ref, kept',
  # 392 tokens, 32 experts: 6.1, 12.3 and 24.5; 784 over 512: 1.5.
  [(2, 6), (5, 12), (12, 24), (94, 2), (25, 1), (1, None), (3, None)],
)
def test_buffers_are_rounded_to_the_nearest(ref, kept):
  assert models.capacity(run(ref)) == kept


def test_groups_are_of_whole_images():
  sizes = {r.group: models.config(r).model.moe.group_size for r in ROWS}
  del sizes[None]
  assert {196: 1, 1568: 8, 2048: 8, 6272: 8}.items() <= sizes.items()


# Run 45: 1,568 tokens of 8 images, 32 experts that keep 98, 6 MoE blocks.
S, E, C, D = 1568, 32, 98, 384


def dispatch(mask, x):
  return jnp.einsum('sec,sd->ecd', mask.astype(x.dtype), x)


def combine(mask, gates, y):
  return jnp.einsum('sec,ecd->sd', mask * gates[..., None], y)


def count(function):
  shapes = dict(mask=(S, E, C), gates=(S, E), x=(S, D))
  arguments = {
    name: jax.ShapeDtypeStruct(shape, bool if name == 'mask' else jnp.float32)
    for name, shape in shapes.items()
  }
  flops, exact = flop_count.count(jax.jit(function).trace(**arguments).jaxpr)
  assert exact
  return flops


def layer(mask, gates, x):
  return jnp.sum(combine(mask, gates, jnp.sin(dispatch(mask, x))) ** 2)


def test_one_hot_products_by_hand():
  of_a_group = 2 * S * E * C * D + 2 * S * E * C * D
  assert models.one_hot_flops(run(45)) == 6 * of_a_group / 8
  assert count(layer) == of_a_group
  assert models.one_hot_flops(run(1)) == models.one_hot_flops(run(3)) == 0


def test_training_has_five_products_of_six():
  """Three a product, forward and backward, but for what has no gradient."""

  def gradients(mask, gates, x):
    return jax.value_and_grad(layer, (1, 2))(mask, gates, x)

  assert count(gradients) == figures.ONE_HOT * 3 * count(layer)
