"""FLOPs of a traced program, against formulas and the compiler's count."""

import jax
import pytest
from jax import numpy as jnp

from softmoe import experiment as experiment_lib
from softmoe.moe.execution import grouped_kernel, rounds
from softmoe.plan import flop_count, programs

X = jax.ShapeDtypeStruct((4, 8), jnp.float32)
W = jax.ShapeDtypeStruct((8, 8), jnp.float32)
PRODUCT = 2 * 4 * 8 * 8


def count(function, *arguments, **options):
  jaxpr = jax.jit(function).trace(*arguments).jaxpr
  return flop_count.count(jaxpr, **options)


def test_products_of_a_gradient():
  loss = lambda w, x: jnp.sum((x @ w) ** 2)
  assert count(jax.grad(loss), W, X) == (2 * PRODUCT, True)


def test_batched_products():
  x = jax.ShapeDtypeStruct((3, 4, 8), jnp.float32)
  assert count(lambda x: jnp.einsum('bij,bkj->bik', x, x), x) == (
    2 * 3 * 4 * 4 * 8,
    True,
  )


def test_a_scan_counts_every_turn_and_remat_its_second_forward():
  body = jax.checkpoint(lambda x, w: jnp.sin(x @ w))

  def loss(ws, x):
    return jnp.sum(jax.lax.scan(lambda x, w: (body(x, w), ()), x, ws)[0])

  ws = jax.ShapeDtypeStruct((5, 8, 8), jnp.float32)
  assert count(loss, ws, X) == (5 * PRODUCT, True)
  # Forward, forward again, and two products backward.
  assert count(jax.grad(loss), ws, X) == (5 * 4 * PRODUCT, True)


def test_a_conditional_counts_its_dearest_branch():
  def function(i, x, w):
    return jax.lax.cond(i > 0, lambda: x @ w @ w, lambda: x @ w)

  i = jax.ShapeDtypeStruct((), jnp.int32)
  assert count(function, i, X, W) == (2 * PRODUCT, True)


def test_a_loop_that_the_data_end_is_a_lower_bound():
  def function(x, w):
    return jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ w, x)

  assert count(function, X, W) == (PRODUCT, False)


def test_rounds_that_an_even_load_does_not_need_are_free():
  room = rounds.room(1.25, even=8, most=30)  # 10, and up to 4 x 5

  def function(x, w):
    each = lambda start, num_rows, arguments: x @ arguments
    return rounds.total(each, room, jnp.int32(x[0, 0]), w)

  assert count(function, X, W) == (PRODUCT, True)
  assert count(function, X, W, worst=True) == (5 * PRODUCT, True)
  grad = jax.grad(lambda w, x: jnp.sum(function(x, w) ** 2))
  assert count(grad, W, X) == (2 * PRODUCT, True)
  # Of w alone; a round's own forward product is not read.
  assert count(grad, W, X, worst=True) == (2 * 5 * PRODUCT, True)


def test_a_ragged_product_multiplies_each_row_once():
  x, w = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((6, 4), (3, 4, 5)))
  sizes = jax.ShapeDtypeStruct((3,), jnp.int32)
  assert count(jax.lax.ragged_dot, x, w, sizes) == (2 * 6 * 4 * 5, True)


def test_a_shard_map_counts_all_devices(mesh):
  place = jax.NamedSharding(mesh(2, 4), jax.P(('data', 'expert')))
  x = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=place)
  mapped = jax.shard_map(
    lambda x, w: x @ w,
    in_specs=(jax.P(('data', 'expert')), jax.P()),
    out_specs=jax.P(('data', 'expert')),
  )
  assert count(mapped, x, W) == (2 * 8 * 8 * 8, True)


def test_a_grouped_matmul_counts_its_blocks():
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.bfloat16)
  x, w, dy = shape(1000, 256), shape(3, 256, 512), shape(1000, 512)
  sizes = jax.ShapeDtypeStruct((3,), jnp.int32)

  def forward(x, w, sizes):
    return grouped_kernel.grouped_matmul(x, w, sizes)

  def backward(x, w, sizes, dy):
    return jax.vjp(lambda x, w: forward(x, w, sizes), x, w)[1](dy)

  # As many blocks as three groups, and rows of none, can make of 1,000 rows.
  rows, each = 128 * (1000 // 128 + 4), 2 * 256 * 512
  assert count(forward, x, w, sizes) == (rows * each, True)
  # The gradient of a matrix: 334 rows, in steps of 64.
  total = (rows + 3 * 384) * each
  assert count(backward, x, w, sizes, dy) == (total, True)


@pytest.mark.parametrize(
  'model', [pytest.param('vit', marks=pytest.mark.slow), 'soft']
)
@pytest.mark.parametrize(
  'program',
  [pytest.param(programs.TRAIN, marks=pytest.mark.slow), programs.INFERENCE],
)
def test_a_step_against_the_compilers_count(tiny, model, program):
  """Larger than tiny, so that what is no product weighs little."""
  config = tiny(
    model,
    mesh='data:2,expert:4',
    model__width=128,
    model__mlp_dim=512,
    data__image_size=(32, 32),
    data__eval_batch_size=64,
    data__train__crop='none',
  )
  experiment = experiment_lib.build(config)
  traced = programs.trace(experiment, program)
  flops, exact = flop_count.count(traced.jaxpr)
  compiled = traced.lower().compile().cost_analysis()['flops']
  assert exact
  assert flops / 8 == pytest.approx(compiled, rel=0.1)


def test_what_nothing_reads_does_not_count():
  x = jnp.ones((3, 4, 4))

  @jax.jit
  def both(x):
    return jnp.sum(x), x @ x

  def sums(x):
    return jax.lax.scan(lambda _, x: (None, both(x)[0]), None, x)[1]

  traced = jax.jit(sums).trace(x)
  assert flop_count.count(traced.jaxpr) == (0, True)
