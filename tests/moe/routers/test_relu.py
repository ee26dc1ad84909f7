"""ReLU routing against plain loops; what moves lambda."""

import functools
import math

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.moe import routing
from softmoe.moe.routers import relu
from tests.moe.sparse import (
  check_nothing_but_padding_moves_nothing,
  check_nothing_reaches_earlier_tokens,
  route,
)

# Tokens, width, experts, target number of active experts.
SHAPES = (
  (1, 4, 1, 1),
  (1, 5, 3, 2),
  (7, 4, 1, 1),
  (8, 4, 4, 4),
  (13, 6, 5, 2),
  (16, 8, 8, 3),
  (10, 4, 16, 1.5),
  (33, 8, 7, 1),
  (24, 3, 12, 4),
  (5, 16, 64, 8),
  (40, 8, 3, 2),
  (17, 2, 9, 5),
)
CASES = 17  # of each shape


def router(width=8, experts=6, k=2, **options):
  return relu.ReLURouter(width, experts, k=k, rngs=nnx.Rngs(0), **options)


def draw(rng, m, d, e):
  """Returns a case in which no logit is near 0."""
  while True:
    skew = rng.choice([0, 0, 3])
    x = rng.normal(size=(m, d)) + skew * rng.normal(size=d)
    x = x.astype(np.float32)
    kernel = rng.normal(size=(d, e)).astype(np.float32) / np.sqrt(d)
    mask = rng.random(m) < rng.choice([0.6, 1.0])
    if np.min(np.abs(x @ kernel)) > 1e-5:
      return x, kernel, mask


def expected(x, kernel, mask, k, coefficient, cotangent):
  """Returns gates, the loss, sparsity, and the gradients of the objective."""
  m, e, real = len(x), kernel.shape[1], max(np.sum(mask), 1)
  gates = np.zeros((m, e), np.float32)
  for token in range(m):
    for expert in range(e):
      if mask[token]:
        gates[token, expert] = max(x[token] @ kernel[:, expert], 0)
  active = gates > 0
  loss, dlogits = 0.0, np.zeros((m, e), np.float32)
  for expert in range(e):
    share = np.sum(active[:, expert]) / (real * k)
    loss += coefficient * e * share * np.sum(gates[:, expert]) / real
    dlogits[:, expert] = cotangent[:, expert] + coefficient * e * share / real
  dlogits = np.where(active, dlogits, 0)
  sparsity = 1 - np.sum(active) / (real * e)
  return gates, loss, sparsity, (dlogits @ kernel.T, x.T @ dlogits)


@functools.partial(jax.jit, static_argnums=0)
def run(graphdef, kernel, coefficient, x, mask, cotangent):
  def objective(x, kernel, log_coefficient):
    params = {'kernel': kernel, 'log_coefficient': log_coefficient}
    assignment, aux = nnx.merge(graphdef, params)(x, mask=mask)
    gates = jnp.where(assignment.wanted(), assignment.gates, 0)
    value = jnp.sum(cotangent * gates) + aux.losses['sparsity']
    return value, (gates, assignment, aux)

  return jax.grad(objective, (0, 1, 2), has_aux=True)(
    x, kernel, jnp.log(coefficient)
  )


@pytest.mark.parametrize('shape', SHAPES)
def test_matches_plain_loops(shape):
  m, d, e, k = shape
  graphdef = nnx.graphdef(router(d, e, k))
  for seed in range(CASES):
    rng = np.random.default_rng((seed, *shape[:3]))
    x, kernel, mask = draw(rng, m, d, e)
    coefficient = np.float32(rng.uniform(0.01, 1))
    cotangent = rng.normal(size=(m, e)).astype(np.float32)
    gradient, (gates, assignment, aux) = run(
      graphdef, kernel, coefficient, x, mask, cotangent
    )
    expected_gates, loss, sparsity, expected_gradient = expected(
      x, kernel, mask, k, coefficient, cotangent
    )
    assert assignment.capacity is None
    np.testing.assert_array_equal(assignment.wanted(), expected_gates > 0)
    np.testing.assert_allclose(gates, expected_gates, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(aux.losses['sparsity'], loss, rtol=1e-4)
    for actual, wanted in zip(gradient, expected_gradient, strict=False):
      np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)
    assert float(gradient[2]) == 0  # log lambda
    if np.any(mask):
      np.testing.assert_allclose(
        aux.steer['log_coefficient'] / (e * np.sum(mask)),
        sparsity - (1 - k / e),
        atol=1e-6,
      )


def update(model, aux):
  """Takes one step against the error."""
  log = model.log_coefficient
  return jnp.exp(log.rule(log[...], aux.steer['log_coefficient']))


def test_lambda_follows_the_sparsity():
  # Of 4 experts, 3 are active at the first token, 1 at the second.
  x = jnp.array([[1.0, 1, 1, -1], [1.0, -1, -1, -1]])
  for k, factor in ((1, 1.2), (3, 1 / 1.2), (2, 1.0)):
    model = router(4, 4, k, coefficient=0.5)
    model.kernel[...] = jnp.eye(4)
    _, aux = route(model, x, jnp.ones(2, bool))
    np.testing.assert_allclose(update(model, aux), 0.5 * factor, rtol=1e-5)


def test_lambda_starts_and_steps_as_told():
  model = router(coefficient=1e-8, factor=1.2, param_dtype=jnp.bfloat16)
  assert isinstance(model.log_coefficient, routing.Steered)
  assert model.log_coefficient[...].dtype == jnp.float32
  assert model.log_coefficient.rule == routing.StepBySign(math.log(1.2))
  _, aux = route(model, jnp.ones((2, 8)), jnp.ones(2, bool))
  np.testing.assert_allclose(aux.metrics['coefficient'], 1e-8, rtol=1e-5)


def test_loss_and_lambda_bring_the_number_of_experts_to_k():
  model = router(8, 16, 2, coefficient=1e-3)
  x = jax.random.normal(jax.random.key(0), (128, 8)).at[:, 0].set(1)
  goal = x @ model.kernel[...] + 1  # would keep nearly all of them active

  @jax.jit
  def step(model):
    def loss(model):
      gates, aux = model(x)
      task = jnp.mean(jnp.square(gates.gates - goal))
      return task + aux.losses['sparsity'], (aux, jnp.mean(gates.wanted()))

    gradient, (aux, active) = jax.grad(loss, has_aux=True)(model)
    kernel = model.kernel[...] - 0.3 * gradient.kernel[...]
    return kernel, jnp.log(update(model, aux)), 16 * active

  counts = []
  for _ in range(400):
    model.kernel[...], model.log_coefficient[...], active = step(model)
    counts.append(float(active))
  assert max(counts) > 6
  assert np.mean(counts[-50:]) == pytest.approx(2, abs=0.5)


def test_routing_ignores_later_tokens_and_padding_to_the_bit():
  assert router().causal
  check_nothing_reaches_earlier_tokens(router())


def test_nothing_but_padding_adds_and_moves_nothing():
  losses = check_nothing_but_padding_moves_nothing(router())
  assert float(losses['sparsity']) == 0


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(k=0), 'k: got 0; above 0, at most 6, the number of experts'),
    (dict(k=6.5), 'k: got 6.5; above 0, at most 6'),
    (dict(coefficient=0.0), 'coefficient: got 0.0; above 0'),
    (dict(factor=0.5), 'factor: got 0.5; at least 1'),
    (dict(width=0), 'width: got 0; at least 1'),
  ],
)
def test_bad_arguments(options, message):
  with pytest.raises(ValueError, match=message):
    router(**options)
