"""Bias-balanced top-k against plain loops; what moves the bias."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.moe import routing
from softmoe.moe.routers import bias_balanced
from tests.moe.sparse import (
  check_nothing_but_padding_moves_nothing,
  check_nothing_reaches_earlier_tokens,
  route,
)

# Tokens, width, experts, choices.
SHAPES = (
  (1, 4, 1, 1),
  (1, 5, 3, 2),
  (7, 4, 1, 1),
  (8, 4, 4, 4),
  (13, 6, 5, 2),
  (16, 8, 8, 3),
  (10, 4, 16, 6),
  (33, 8, 7, 1),
  (24, 3, 12, 4),
  (5, 16, 64, 8),
  (40, 8, 3, 2),
  (17, 2, 9, 5),
)
CASES = 17  # of each shape


def router(width=8, experts=6, k=2, **options):
  return bias_balanced.BiasBalanced(
    width, experts, k=k, rngs=nnx.Rngs(0), **options
  )


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def choose(scores, bias, k):
  """Returns the chosen experts of one token, and how clear the choice is."""
  biased = scores + bias
  ranked = sorted(range(len(biased)), key=lambda e: (-biased[e], e))
  gap = biased[ranked[k - 1]] - biased[ranked[k]] if k < len(ranked) else np.inf
  return ranked[:k], gap


def draw(rng, m, d, e, k):
  """Returns a case whose choices do not hang on the last bits."""
  while True:
    skew = rng.choice([0, 0, 2])
    x = rng.normal(size=(m, d)) + skew * rng.normal(size=d)
    x = x.astype(np.float32)
    kernel = rng.normal(size=(d, e)).astype(np.float32) / np.sqrt(d)
    bias = rng.choice([0, 0.3]) * rng.normal(size=e).astype(np.float32)
    mask = rng.random(m) < rng.choice([0.6, 1.0])
    scores = sigmoid(x @ kernel)
    choices = [choose(row, bias, k) for row in scores]
    if min(gap for _, gap in choices) > 1e-5:
      return x, kernel, bias.astype(np.float32), mask, scores, choices


def expected(scores, mask, choices, cotangent, scale):
  """Returns chosen pairs, gates, and d sum(cotangent * gates) / d logits."""
  chosen = np.zeros(scores.shape, bool)
  gates, dlogits = np.zeros((2, *scores.shape), np.float32)
  for token, (experts, _) in enumerate(choices):
    if not mask[token]:
      continue
    s = scores[token, experts]
    g = cotangent[token, experts]
    chosen[token, experts] = True
    gates[token, experts] = scale * s / np.sum(s)
    ds = scale * (g * np.sum(s) - np.sum(g * s)) / np.sum(s) ** 2
    dlogits[token, experts] = ds * s * (1 - s)
  return chosen, gates, dlogits


@functools.partial(jax.jit, static_argnums=0)
def run(graphdef, kernel, bias, x, mask, cotangent):
  def objective(x, kernel, bias):
    params = {'kernel': kernel, 'bias': bias}
    assignment, aux = nnx.merge(graphdef, params)(x, mask=mask)
    gates = jnp.where(assignment.wanted(), assignment.gates, 0)
    return jnp.sum(cotangent * gates), (gates, assignment, aux)

  return jax.grad(objective, (0, 1, 2), has_aux=True)(x, kernel, bias)


@pytest.mark.parametrize('shape', SHAPES)
def test_matches_plain_loops(shape):
  m, d, e, k = shape
  graphdef = nnx.graphdef(router(d, e, k, scale=2.5))
  for seed in range(CASES):
    rng = np.random.default_rng((seed, *shape))
    x, kernel, bias, mask, scores, choices = draw(rng, m, d, e, k)
    cotangent = rng.normal(size=(m, e)).astype(np.float32)
    gradient, (gates, assignment, aux) = run(
      graphdef, kernel, bias, x, mask, cotangent
    )
    chosen, expected_gates, dlogits = expected(
      scores, mask, choices, cotangent, 2.5
    )
    assert (assignment.capacity, assignment.choices) == (None, k)
    np.testing.assert_array_equal(assignment.wanted(), chosen)
    np.testing.assert_allclose(gates, expected_gates, atol=5e-6)
    np.testing.assert_allclose(
      gradient[0], dlogits @ kernel.T, rtol=1e-4, atol=2e-5
    )
    np.testing.assert_allclose(gradient[1], x.T @ dlogits, rtol=1e-4, atol=1e-4)
    assert np.all(gradient[2] == 0)  # the bias
    load = np.sum(chosen, axis=0) / max(np.sum(mask), 1)
    counts = np.sum(chosen, axis=0)
    np.testing.assert_array_equal(
      aux.steer['bias'], e * counts - np.sum(counts)
    )
    np.testing.assert_allclose(aux.metrics['receive_max'], max(load), rtol=1e-6)
    assert aux.losses == {}


def test_bias_is_chosen_by_and_not_weighed_by():
  model = router(4, 3, 1)
  model.kernel[...] = jnp.eye(4, 3)
  x, mask = jnp.array([[2.0, 1.0, 0.0, 0.0]]), jnp.ones(1, bool)
  assert np.argmax(route(model, x, mask)[0].priority) == 0
  model.bias[...] = jnp.array([0.0, 0.2, 0.0])
  assignment, _ = route(model, x, mask)
  assert np.argmax(assignment.priority) == 1
  np.testing.assert_allclose(assignment.gates[0], [0, 1, 0], rtol=1e-6)


@pytest.mark.parametrize('experts', [7, 49])
def test_balanced_load_is_an_error_of_exactly_zero(experts):
  model = router(experts, experts, 1)
  model.kernel[...] = jnp.eye(experts)
  x = jnp.tile(jnp.eye(experts), (3, 1))
  _, aux = route(model, x, jnp.ones(3 * experts, bool))
  assert np.all(aux.steer['bias'] == 0)


def test_moving_against_the_error_balances_the_load():
  model = router(8, 6, 2, rate=5e-3)
  x = jax.random.normal(jax.random.key(0), (256, 8)) + 3
  mask = jnp.ones(256, bool)
  first = float(route(model, x, mask)[1].metrics['receive_max'])
  for _ in range(300):
    _, aux = route(model, x, mask)
    model.bias[...] = model.bias.rule(model.bias[...], aux.steer['bias'])
  last = float(route(model, x, mask)[1].metrics['receive_max'])
  assert first > 0.8
  assert last == pytest.approx(2 / 6, abs=0.05)


def test_steered_parameter_and_its_rate():
  model = router(rate=0.02)
  assert isinstance(model.bias, routing.Steered)
  assert model.bias.rule == routing.StepBySign(0.02)
  assert model.bias[...].dtype == jnp.float32
  low = router(param_dtype=jnp.bfloat16)
  assert low.kernel[...].dtype == jnp.bfloat16
  assert low.bias[...].dtype == jnp.float32


def test_capacity_prefers_higher_scores():
  model = router(2, 2, 1, capacity_factor=1.0)
  model.kernel[...] = jnp.eye(2)
  x = jnp.array([[1.0, 0], [3.0, 0], [2.0, 0], [4.0, 0]])
  assignment, _ = route(model, x, jnp.ones(4, bool))
  assert assignment.capacity == 2
  assert list(np.argsort(-assignment.priority[:, 0])) == [3, 1, 2, 0]
  assert not model.causal and router().causal


def test_routing_ignores_later_tokens_and_padding_to_the_bit():
  check_nothing_reaches_earlier_tokens(router())


def test_nothing_but_padding_moves_nothing():
  assert check_nothing_but_padding_moves_nothing(router()) == {}


def test_scores_that_underflow_keep_their_ratio():
  model = router(3, 3, 2)
  model.kernel[...] = jnp.eye(3)
  x = jnp.array([[-1e4, -1e4, -2e4]])
  gates, gradient = jax.jit(
    jax.value_and_grad(lambda x: model(x)[0].gates[0, 0])
  )(x)
  np.testing.assert_allclose(gates, 0.5)
  np.testing.assert_allclose(gradient, [[0.25, -0.25, 0]], rtol=1e-5)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(k=0), 'k: got 0; 1 to 6, the number of experts'),
    (dict(k=7), 'k: got 7; 1 to 6, the number of experts'),
    (dict(rate=-1.0), 'rate: got -1.0; at least 0'),
    (dict(balance_by='quantile', rate=0.1), 'rate: got 0.1; None for'),
    (dict(scale=0.0), 'scale: got 0.0; above 0'),
    (dict(capacity_factor=0.0), 'capacity_factor: got 0.0; above 0'),
  ],
)
def test_bad_arguments(options, message):
  with pytest.raises(ValueError, match=message):
    router(**options)
