"""The router against loops over tokens and experts, written from the paper.

The forward loop is plain numpy. The gradient is that of a second loop, in
jax.numpy, which takes the tokens that experts took as constants.
"""

import math

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.moe.routers import experts_choice
from tests.moe.sparse import QUICK_COMPILE, check_gradients, compute, route

ExpertsChoice = experts_choice.ExpertsChoice
WIDTH, DRAWS = 6, 20
# Draws in which an expert's gates (or logits) of two tokens come closer are
# redone: those that order tokens differ by more than rounding.
GAP = 1e-5

# name: (tokens, experts, skew of the routing, options). Ten cases of twenty
# draws: 200, half of them with padding.
CASES = {
  'paper': (16, 4, 1, {'capacity_factor': 2.0}),
  'half': (17, 4, 0, {'capacity_factor': 0.5}),
  'noise': (12, 8, 1, {'noise_std': 1.0}),
  'skewed': (24, 5, 3, {}),
  'all tokens': (7, 3, 0, {'capacity_factor': 5.0}),
  'one token': (1, 4, 0, {}),
  'one expert': (9, 1, 1, {'capacity_factor': 0.4}),
  'over tokens': (16, 4, 1, {'softmax_over': 'tokens', 'noise_std': 1.0}),
  'skewed over tokens': (
    13,
    5,
    3,
    {'softmax_over': 'tokens', 'capacity_factor': 1.5},
  ),
  'one token over tokens': (1, 3, 0, {'softmax_over': 'tokens'}),
}


def create(experts, options):
  return ExpertsChoice(WIDTH, experts, **options, rngs=nnx.Rngs(0))


def loop(router, x, noise, mask, up, down):
  """Returns outputs and kept pairs, by loops over tokens and experts."""
  x, kernel, noise, up, down = map(
    np.asarray, (x, router.kernel[...], noise, up, down)
  )
  real = [t for t in range(len(x)) if mask[t]]
  columns = range(kernel.shape[1])
  score = {
    (t, e): math.exp(x[t] @ kernel[:, e] + noise[t, e])
    for t in real
    for e in columns
  }
  if router.softmax_over == 'experts':
    total = {(t, e): sum(score[t, i] for i in columns) for t, e in score}
  else:
    total = {(t, e): sum(score[i, e] for i in real) for t, e in score}
  capacity = math.ceil(round(len(x) * router.capacity_factor / len(columns), 9))
  kept, y = np.zeros((len(x), len(columns)), bool), np.zeros_like(x)
  for e in columns:
    gate = {t: score[t, e] / total[t, e] for t in real}
    for t in sorted(real, key=lambda t: -gate[t])[:capacity]:
      kept[t, e] = True
      y[t] += gate[t] * (np.tanh(x[t] @ up[e]) @ down[e])
  return y, kept


def scalar(kernel, x, over, constant):
  """Returns the weighted sum of the outputs, of tokens taken before."""
  noise, mask, kept, up, down, cotangent = constant
  y = 0.0
  columns = range(kernel.shape[1])
  scores = [
    jnp.where(mask, jnp.exp(x @ kernel[:, e] + noise[:, e]), 0) for e in columns
  ]
  for e in columns:
    total = sum(scores) if over == 'experts' else jnp.sum(scores[e])
    gate = scores[e] / jnp.where(mask, total, 1)
    out = jnp.tanh(x @ up[e]) @ down[e]
    y = y + (kept[:, e] * gate)[:, None] * out
  return jnp.sum(y * cotangent)


def draw(rng, tokens, experts, skew, std, padded):
  """Returns tokens, kernel, key, noise and mask without near ties."""
  while True:
    kernel = rng.normal(size=(WIDTH, experts)) / 2
    # All tokens have a part in common, which draws them to a few experts.
    common = rng.normal(size=WIDTH)
    x = rng.normal(size=(tokens, WIDTH))
    x = x + skew * common / np.linalg.norm(common)
    key = jax.random.key(rng.integers(2**31))
    noise = std * jax.random.normal(key, (tokens, experts))
    mask = np.ones(tokens, bool)
    if padded:
      mask = rng.random(tokens) < 0.6
      mask[rng.integers(tokens)] = True
    logits = x @ kernel + np.asarray(noise, np.float64)
    gates = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gaps = [
      np.diff(np.sort(values, axis=0), axis=0) for values in (logits, gates)
    ]
    if experts == 1:
      gaps = gaps[:1]  # The only expert's gates are all 1: ties.
    if min(np.min(g, initial=1) for g in gaps) > GAP:
      return jnp.float32(x), jnp.float32(kernel), key, noise, jnp.array(mask)


@pytest.mark.parametrize('case', CASES)
def test_router_is_the_loop(case):
  tokens, experts, skew, options = CASES[case]
  router = create(experts, options)
  reference = jax.jit(
    jax.grad(scalar, argnums=(0, 1)),
    static_argnums=2,
    compiler_options=QUICK_COMPILE,
  )
  rng = np.random.default_rng(len(case))
  for i in range(DRAWS):
    x, kernel, key, noise, mask = draw(
      rng, tokens, experts, skew, router.noise_std / experts, i % 2
    )
    up = jnp.float32(rng.normal(size=(experts, WIDTH, 5)))
    down = jnp.float32(rng.normal(size=(experts, 5, WIDTH)))
    cotangent = jnp.float32(rng.normal(size=x.shape))
    router.kernel[...] = kernel
    grads, (y, kept, _, losses) = compute(
      router, x, mask, key, up, down, cotangent
    )
    expected_y, expected = loop(router, x, noise, np.asarray(mask), up, down)
    np.testing.assert_array_equal(kept, expected)
    np.testing.assert_allclose(y, expected_y, rtol=1e-5, atol=1e-5)
    constant = noise, mask, expected, up, down, cotangent
    right = reference(kernel, x, router.softmax_over, constant)
    check_gradients(grads, right)
    assert losses == {}


def by_hand(x, **options):
  """Routes rows of logits, behind an identity kernel."""
  x = jnp.asarray(x, jnp.float32)
  router = ExpertsChoice(x.shape[1], x.shape[1], **options, rngs=nnx.Rngs(0))
  router.kernel[...] = jnp.eye(x.shape[1])
  return route(router, x)[0]


SCORES = [[6.0, 2, 2], [1, 8, 1], [3, 3, 4], [9, 0.5, 0.5]]


def test_softmax_over_experts_by_hand():
  routed = by_hand(np.log(SCORES), capacity_factor=1.0)
  assert (routed.capacity, routed.choices) == (2, None)
  np.testing.assert_allclose(routed.gates, np.array(SCORES) / 10, rtol=1e-5)
  np.testing.assert_array_equal(routed.priority, routed.gates)


def test_softmax_over_tokens_by_hand():
  routed = by_hand(np.log(SCORES), softmax_over='tokens')
  totals = np.array([19, 13.5, 7.5])
  np.testing.assert_allclose(routed.gates, SCORES / totals, rtol=1e-5)
  np.testing.assert_array_equal(routed.priority, routed.gates)


@pytest.mark.parametrize('over', experts_choice.SOFTMAX_OVER)
def test_padding_is_never_taken_and_weighs_nothing(over):
  router = create(3, {'softmax_over': over, 'capacity_factor': 3.0})
  x = jax.random.normal(jax.random.key(0), (6, WIDTH))
  mask = jnp.array([True, False, True, True, False, True])
  routed, _ = route(router, x, mask)
  assert routed.capacity == 6
  np.testing.assert_array_equal(
    routed.wanted(), np.broadcast_to(mask[:, None], (6, 3))
  )
  alone, _ = route(router, x[mask])
  np.testing.assert_allclose(routed.gates[mask], alone.gates, rtol=1e-5)


@pytest.mark.parametrize('over', experts_choice.SOFTMAX_OVER)
def test_group_of_padding_alone_has_finite_gradients(over):
  router = create(3, {'softmax_over': over})
  x = jax.random.normal(jax.random.key(0), (5, WIDTH))

  def loss(x):
    routed, _ = router(x, mask=jnp.zeros(5, bool))
    return jnp.sum(jnp.where(routed.wanted(), routed.gates, 0))

  value, grad = jax.jit(jax.value_and_grad(loss))(x)
  assert value == 0
  np.testing.assert_array_equal(grad, np.zeros_like(x))


def test_there_is_no_loss():
  _, aux = create(3, {})(jnp.ones((4, WIDTH)), key=jax.random.key(0))
  assert aux.losses == {}


def test_noise_needs_a_key_and_differs_between_keys():
  x = jax.random.normal(jax.random.key(0), (32, WIDTH))
  router = create(8, {'noise_std': 1.0})
  gates = lambda key: np.asarray(route(router, x, key=key)[0].gates)
  first, second = jax.random.key(1), jax.random.key(2)
  np.testing.assert_array_equal(gates(None), gates(None))
  np.testing.assert_array_equal(gates(first), gates(first))
  assert np.any(gates(first) != gates(second))
  assert np.any(gates(first) != gates(None))
  router = create(8, {})
  np.testing.assert_array_equal(gates(first), gates(None))


def test_logits_are_float32_whatever_the_tokens():
  router = create(4, {})
  x = jax.random.normal(jax.random.key(0), (8, WIDTH), jnp.bfloat16)
  low, _ = route(router, x)
  high, _ = route(router, x.astype(jnp.float32))
  assert low.gates.dtype == low.priority.dtype == jnp.float32
  np.testing.assert_array_equal(low.gates, high.gates)


def test_priority_carries_no_gradient():
  router = create(4, {})
  total = lambda x: jnp.sum(jnp.square(router(x)[0].priority))
  grad = jax.jit(jax.grad(total))(jnp.ones((5, WIDTH)))
  np.testing.assert_array_equal(grad, np.zeros((5, WIDTH)))


@pytest.mark.parametrize(
  'options, message',
  [
    ({'capacity_factor': 0.0}, 'capacity_factor: got 0.0; above 0'),
    ({'capacity_factor': -1.0}, 'capacity_factor: got -1.0; above 0'),
    ({'capacity_factor': math.inf}, 'capacity_factor: got inf; above 0'),
    ({'softmax_over': 'slots'}, "softmax_over: got 'slots'; one of"),
    ({'noise_std': -0.5}, 'noise_std: got -0.5; at least 0'),
  ],
)
def test_bad_argument_is_named(options, message):
  with pytest.raises(ValueError, match=message):
    create(8, options)


def test_bad_size_is_named():
  with pytest.raises(ValueError, match='width: got 0; at least 1'):
    ExpertsChoice(0, 4, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match='num_experts: got -1; at least 1'):
    ExpertsChoice(4, -1, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match=f"x: got 'width 5'; {WIDTH}"):
    create(4, {})(jnp.ones((3, 5)))
