"""The router by hand: order, padding, null experts, noise, capacity, types."""

import functools
import math

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.moe.routers import gating
from softmoe.moe.routers.tokens_choice import TokensChoice
from tests.moe.sparse import route

WIDTH = 6
ALL = {'importance': 0.5, 'load': 0.4, 'switch': 1.0, 'gshard': 2.0, 'z': 0.1}


def create(experts, options):
  return TokensChoice(WIDTH, experts, **options, rngs=nnx.Rngs(0))


# By hand: tokens are rows of logits, behind an identity kernel.


def by_hand(logits, **options):
  logits = jnp.asarray(logits, jnp.float32)
  router = TokensChoice(logits.shape[1], **options, rngs=nnx.Rngs(0))
  router.kernel[...] = jnp.eye(logits.shape[1])
  return route(router, logits)[0]


def test_first_choices_go_before_second_choices():
  # Gates .6 .3 .1: tokens 0, 1 and 3 start with expert 0, token 2 ends there.
  p = [[0.6, 0.3, 0.1], [0.7, 0.1, 0.2], [0.4, 0.5, 0.1], [0.8, 0.1, 0.1001]]
  routed = by_hand(np.log(p), num_experts=3, k=2, capacity_factor=1.0)
  no = -np.inf
  order = [[0, -4, no], [-1, no, -5], [-6, -2, no], [-3, no, -7]]
  np.testing.assert_array_equal(routed.priority, order)
  assert (routed.capacity, routed.choices) == (3, 2)
  gates = [[0.6, 0.3, 0], [0.7, 0, 0.2], [0.4, 0.5, 0], [0.8, 0, 0.1]]
  np.testing.assert_allclose(routed.gates, gates, rtol=1e-3)


def test_batch_priority_puts_the_surest_tokens_first():
  p = [[0.6, 0.4], [0.9, 0.1], [0.3, 0.7], [0.1, 0.9]]
  routed = by_hand(np.log(p), num_experts=2, k=2, batch_priority=True)
  # By first gate: 1 and 3 (alike, so 1 first), then 2, then 0.
  order = [[-3, -7], [0, -4], [-6, -2], [-5, -1]]
  np.testing.assert_array_equal(routed.priority, order)


@pytest.mark.parametrize('batch_priority', [False, True])
def test_ties_go_to_the_lower_expert_and_the_earlier_token(batch_priority):
  routed = by_hand(
    np.zeros((3, 4)), num_experts=4, k=2, batch_priority=batch_priority
  )
  expected = [[-t, -3 - t, -np.inf, -np.inf] for t in range(3)]
  np.testing.assert_array_equal(routed.priority, expected)


def test_padding_takes_no_place():
  router = create(4, {'k': 2})
  x = jax.random.normal(jax.random.key(0), (6, WIDTH))
  mask = jnp.array([True, False, True, True, False, True])
  routed, _ = route(router, x, mask)
  alone, _ = route(router, x[mask])
  np.testing.assert_array_equal(routed.wanted()[~mask], False)
  np.testing.assert_array_equal(routed.gates[~mask], 0)
  np.testing.assert_allclose(routed.gates[mask], alone.gates, rtol=1e-5)
  for e in range(4):  # The order of the real tokens, not their numbers.
    np.testing.assert_array_equal(
      np.argsort(-routed.priority[mask][:, e], stable=True),
      np.argsort(-alone.priority[:, e], stable=True),
    )


def test_real_gates_sum_to_one_beside_null_experts():
  p = [[0.5, 0.2, 0.2, 0.1], [0.1, 0.05, 0.45, 0.4], [0.3, 0.2, 0.1, 0.4]]
  router = TokensChoice(4, 2, k=2, num_null=2, rngs=nnx.Rngs(0))
  router.kernel[...] = jnp.eye(4)
  routed, _ = route(router, jnp.log(jnp.array(p)))
  # Token 0 picks 0 and 1; token 1 only null experts; token 2 a null one and 0.
  np.testing.assert_allclose(
    routed.gates, [[5 / 7, 2 / 7], [0, 0], [1, 0]], rtol=1e-5
  )
  np.testing.assert_array_equal(
    routed.wanted(), [[True, True], [False, False], [True, False]]
  )


def test_group_of_padding_alone_has_finite_gradients():
  router = create(4, {'k': 3, 'num_null': 2, 'losses': ALL})
  x = jax.random.normal(jax.random.key(0), (5, WIDTH))

  def loss(router, x):
    routed, aux = router(x, mask=jnp.zeros(5, bool), key=jax.random.key(1))
    return jnp.sum(routed.gates) + sum(aux.losses.values())

  value, grad = jax.jit(jax.value_and_grad(loss, argnums=1))(router, x)
  assert value == 0
  np.testing.assert_array_equal(grad, np.zeros_like(x))


# Noise, evaluation, types, transformations.


def test_noise_needs_a_key_and_differs_between_keys():
  router = create(8, {})
  x = jax.random.normal(jax.random.key(0), (32, WIDTH))
  gates = lambda key: np.asarray(route(router, x, key=key)[0].gates)
  np.testing.assert_array_equal(gates(None), gates(None))
  first, second = jax.random.key(1), jax.random.key(2)
  np.testing.assert_array_equal(gates(first), gates(first))
  assert np.any(gates(first) != gates(second))
  assert np.any(gates(first) != gates(None))
  router = create(8, {'noise_std': 0.0})
  np.testing.assert_array_equal(gates(first), gates(None))


def test_load_is_zero_without_noise():
  x = jnp.ones((4, WIDTH))
  key = jax.random.key(0)
  names = {'load': 1.0, 'importance': 1.0}
  router = create(4, {'losses': names})
  assert route(router, x, key=key)[1].losses['load'] > 0
  assert route(router, x)[1].losses['load'] == 0
  router = create(4, {'losses': names, 'noise_std': 0.0})
  assert route(router, x, key=key)[1].losses['load'] == 0


@pytest.mark.parametrize(
  'options, training, evaluation',
  [
    ({}, 5, 5),
    ({'eval_capacity_factor': 2.0}, 5, 10),
    ({'eval_capacity_factor': None}, 5, None),
    ({'capacity_factor': None}, None, None),
    ({'capacity_factor': None, 'eval_capacity_factor': 1.0}, None, 5),
  ],
)
def test_evaluation_may_have_a_capacity_of_its_own(
  options, training, evaluation
):
  router = create(4, options)

  def capacity(key):
    seen = []  # It is static: no need to compile.
    jax.eval_shape(lambda x: seen.append(router(x, key=key)[0].capacity), x)
    return seen[0]

  x = jax.ShapeDtypeStruct((10, WIDTH), jnp.float32)
  assert capacity(jax.random.key(0)) == training
  assert capacity(None) == evaluation


@pytest.mark.parametrize(
  'tokens, experts, factor, options, expected',
  [
    (1568, 32, 1.0, {'multiple': 4}, 52),
    (1568, 32, 1.0, {}, 49),
    (1568, 32, 1.05, {'choices': 2}, 103),
    (100, 10, 1.1, {}, 11),  # 100 * 1.1 / 10 is 11.000000000000002
    (196, 128, 1.0, {}, 2),
    (6, 4, 0.001, {}, 1),
    (6, 4, 100.0, {}, 6),
    (6, 4, None, {}, None),
  ],
)
def test_capacity(tokens, experts, factor, options, expected):
  assert gating.capacity(tokens, experts, factor, **options) == expected


def test_logits_are_float32_whatever_the_tokens():
  router = create(4, {})
  x = jax.random.normal(jax.random.key(0), (8, WIDTH), jnp.bfloat16)
  low, _ = route(router, x)
  high, _ = route(router, x.astype(jnp.float32))
  assert low.gates.dtype == low.priority.dtype == jnp.float32
  np.testing.assert_array_equal(low.gates, high.gates)


def test_groups_route_alone_under_vmap():
  router = create(4, {'batch_priority': True})
  x = jax.random.normal(jax.random.key(0), (3, 7, WIDTH))
  mask = jnp.arange(7)[None] < jnp.array([7, 4, 1])[:, None]
  keys = jax.random.split(jax.random.key(1), 3)
  together = jax.vmap(functools.partial(route, router))(x, mask, keys)
  for g in range(3):
    alone = route(router, x[g], mask[g], keys[g])
    for actual, expected in zip(
      jax.tree.leaves(together), jax.tree.leaves(alone), strict=True
    ):
      np.testing.assert_allclose(actual[g], expected, rtol=1e-5, atol=1e-6)


def test_priority_carries_no_gradient():
  router = create(4, {'batch_priority': True})

  def total(x):
    priority = router(x)[0].priority
    return jnp.sum(jnp.where(priority > -jnp.inf, priority, 0))

  grad = jax.jit(jax.grad(total))(jnp.ones((5, WIDTH)))
  np.testing.assert_array_equal(grad, np.zeros((5, WIDTH)))


@pytest.mark.parametrize(
  'options, message',
  [
    ({'k': 9}, 'k: got 9; 1 to 8, the number of experts'),
    ({'k': 0}, 'k: got 0; 1 to 8, the number of experts'),
    ({'k': 11, 'num_null': 2}, 'k: got 11; 1 to 10, the number of experts'),
    ({'num_null': -1}, 'num_null: got -1; at least 0'),
    ({'capacity_factor': 0.0}, 'capacity_factor: got 0.0; above 0'),
    ({'capacity_factor': -1.0}, 'capacity_factor: got -1.0; above 0'),
    ({'capacity_factor': math.nan}, 'capacity_factor: got nan; above 0'),
    ({'eval_capacity_factor': 0.0}, 'eval_capacity_factor: got 0.0; above 0'),
    ({'capacity_multiple': 0}, 'capacity_multiple: got 0; at least 1'),
    ({'noise_std': -0.5}, 'noise_std: got -0.5; at least 0'),
    ({'losses': {'loud': 1.0}}, "losses: got 'loud'; names out of"),
    ({'losses': {'z': -1.0}}, 'losses.z.: got -1.0; at least 0'),
  ],
)
def test_bad_argument_is_named(options, message):
  with pytest.raises(ValueError, match=message):
    create(8, options)


def test_bad_size_is_named():
  with pytest.raises(ValueError, match='width: got 0; at least 1'):
    TokensChoice(0, 4, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match='num_experts: got 0; at least 1'):
    TokensChoice(4, 0, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match=f"x: got 'width 5'; {WIDTH}"):
    create(4, {})(jnp.ones((3, 5)))


def test_more_choices_than_float32_can_order_are_refused():
  router = create(4, {'k': 2})
  x = jax.ShapeDtypeStruct((2**23, WIDTH), jnp.float32)
  gates = lambda x: router(x)[0].gates
  assert jax.eval_shape(gates, x).shape == (2**23, 4)
  x = jax.ShapeDtypeStruct((2**23 + 1, WIDTH), jnp.float32)
  with pytest.raises(ValueError, match="'8388609 tokens'; 8388608 at most"):
    jax.eval_shape(gates, x)
