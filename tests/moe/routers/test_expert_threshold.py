"""Expert Threshold against plain loops; what moves the threshold."""

import functools
import statistics

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.moe import routing
from softmoe.moe.routers import expert_threshold
from tests.moe.sparse import (
  check_nothing_but_padding_moves_nothing,
  check_nothing_reaches_earlier_tokens,
  route,
)

# Tokens, width, experts, mean number of experts of a token.
SHAPES = (
  (1, 4, 1, 1),
  (1, 5, 3, 2),
  (7, 4, 1, 0.5),
  (8, 4, 4, 4),
  (13, 6, 5, 2),
  (10, 4, 16, 1.5),
  (33, 8, 7, 1),
  (5, 16, 64, 8),
  (40, 8, 3, 2),
)
CASES = 9  # of each shape


def router(width=8, experts=6, k=2, **options):
  return expert_threshold.ExpertThreshold(
    width, experts, k=k, rngs=nnx.Rngs(0), **options
  )


def cutoff(logits, share):
  """Returns the logit of rank (n + 1) * share, by a walk down the ranks."""
  ranked, n = sorted(logits, reverse=True), len(logits)
  if not n:
    return 0.0
  rank = min(max((n + 1) * share, 1), n)
  first = int(rank)
  if first == n:
    return ranked[-1]
  step = ranked[first] - ranked[first - 1]
  return ranked[first - 1] + (rank - first) * step


def draw(rng, m, d, e):
  """Returns a case in which no logit is near a threshold."""
  while True:
    x = rng.normal(size=(m, d)) + rng.choice([0, 0, 3]) * rng.normal(size=d)
    x = x.astype(np.float32)
    kernel = rng.normal(size=(d, e)).astype(np.float32) / np.sqrt(d)
    mean, weight = rng.normal(size=e).astype(np.float32), rng.choice([0, 0.3])
    mask = rng.random(m) < rng.choice([0.6, 1.0])
    gap = x @ kernel - mean / np.float32(weight or 1)
    if not weight or np.min(np.abs(gap)) > 1e-5:
      return x, kernel, mean, np.float32(weight), mask


@functools.partial(jax.jit, static_argnums=0)
def run(graphdef, params, x, mask, cotangent):
  def objective(x, params):
    assignment, aux = nnx.merge(graphdef, params)(x, mask=mask)
    gates = jnp.where(assignment.wanted(), assignment.gates, 0)
    return jnp.sum(cotangent * gates), (gates, assignment, aux)

  return jax.grad(objective, (0, 1), has_aux=True)(x, params)


@pytest.mark.parametrize('shape', SHAPES)
def test_matches_plain_loops(shape):
  m, d, e, k = shape
  graphdef = nnx.graphdef(router(d, e, k))
  start = -np.inf
  if k < e:
    start = statistics.NormalDist().inv_cdf(1 - k / e)
  for seed in range(CASES):
    rng = np.random.default_rng((seed, *shape[:3]))
    x, kernel, mean, weight, mask = draw(rng, m, d, e)
    cotangent = rng.normal(size=(m, e)).astype(np.float32)
    logits, taken = x @ kernel, np.zeros((m, e), bool)
    gates, dlogits = np.zeros((2, m, e), np.float32)
    for t, i in np.ndindex(m, e):
      threshold = mean[i] / weight if weight else start
      taken[t, i] = mask[t] and logits[t, i] >= threshold
      if taken[t, i]:
        s = 1 / (1 + np.exp(-logits[t, i]))
        gates[t, i] = s
        dlogits[t, i] = cotangent[t, i] * s * (1 - s)
    params = {'kernel': kernel, 'cutoff': mean, 'weight': weight}
    (dx, dparams), (actual, assignment, aux) = run(
      graphdef, params, x, mask, cotangent
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)
    np.testing.assert_array_equal(assignment.wanted(), taken)
    close(actual, gates)
    close(dx, dlogits @ kernel.T)
    close(dparams['kernel'], x.T @ dlogits)
    assert np.all(dparams['cutoff'] == 0) and dparams['weight'] == 0
    close(aux.steer['cutoff'], [cutoff(c, k / e) for c in logits[mask].T])
    assert aux.steer['weight'] == np.any(mask)
    real = max(np.sum(mask), 1)
    close(aux.metrics['receive_max'], np.max(np.sum(taken, axis=0)) / real)
    unrouted = np.sum(mask & ~np.any(taken, axis=1)) / real
    close(aux.metrics['unrouted'], unrouted)
    assert aux.losses == {} and assignment.capacity is None


def update(model, aux):
  """Takes the step of a rule."""
  for name, statistic in aux.steer.items():
    parameter = getattr(model, name)
    parameter[...] = parameter.rule(parameter[...], statistic)


def skewed(seed, tokens=256):
  """Returns tokens that prefer the same experts."""
  mean = 3 * jax.random.normal(jax.random.key(100), (8,))
  return jax.random.normal(jax.random.key(seed), (tokens, 8)) + mean[None]


def load(model, x):
  return np.mean(route(model, x)[0].wanted(), axis=0)


def test_before_any_batch_the_load_is_that_of_normal_logits():
  model = router(64, 8)
  x = jax.random.normal(jax.random.key(0), (2048, 64))
  np.testing.assert_allclose(load(model, x), 2 / 8, atol=0.06)


@pytest.mark.parametrize('tokens', [6, 256])
def test_the_first_batch_evens_a_skewed_load(tokens):
  """Few tokens of a group too: on average over groups."""
  model = router(8, 8)
  assert np.ptp(load(model, skewed(0))) > 0.9
  groups = [route(model, skewed(i, tokens))[1] for i in range(1536 // tokens)]
  mean = lambda *v: sum(v) / len(v)
  aux = jax.tree.map(mean, *groups)
  update(model, aux)
  np.testing.assert_allclose(model.threshold, aux.steer['cutoff'], rtol=1e-5)
  after = load(model, skewed(1000, 4096))
  np.testing.assert_allclose(after, 2 / 8, atol=0.06)


def test_the_threshold_is_the_weighted_mean_of_past_cutoffs():
  model, cutoffs = router(8, 6, decay=0.75), []
  for i in range(4):
    _, aux = route(model, skewed(i))
    cutoffs.append(aux.steer['cutoff'])
    update(model, aux)
    weights = 0.75 ** np.arange(i, -1, -1)
    expected = np.average(cutoffs, axis=0, weights=weights)
    np.testing.assert_allclose(model.threshold, expected, rtol=1e-5, atol=1e-6)


def test_a_starved_expert_comes_back_without_a_gradient():
  model, x = router(8, 6, decay=0.9), skewed(0)
  update(model, route(model, x)[1])
  model.weight[...] = jnp.float32(1)
  model.cutoff[...] = (10 * model.cutoff[...]).at[3].set(50.0)
  assert load(model, x)[3] == 0
  gates = lambda m: jnp.sum(jnp.where((r := m(x)[0]).wanted(), r.gates, 0))
  assert np.all(jax.grad(gates)(model).kernel[...][:, 3] == 0)
  steps = 0
  while load(model, x)[3] == 0:
    update(model, route(model, x)[1])
    steps += 1
    assert steps < 60
  for _ in range(60):
    update(model, route(model, x)[1])
  assert load(model, x)[3] == pytest.approx(2 / 6, abs=0.02)


def test_a_token_that_no_expert_takes_is_counted():
  model = router(2, 2, 1)
  model.kernel[...], model.weight[...] = jnp.eye(2), jnp.float32(1)
  x = jnp.array([[1.0, 1], [-1, 1], [-1, -1], [-2, -2]])
  assignment, aux = route(model, x)
  np.testing.assert_array_equal(np.sum(assignment.wanted(), 1), [2, 1, 0, 0])
  assert aux.metrics['unrouted'] == 0.5 and aux.metrics['receive_max'] == 0.5


def test_steered_parameters_and_their_rule():
  model = router(decay=0.9, param_dtype=jnp.bfloat16)
  for parameter in (model.cutoff, model.weight):
    assert isinstance(parameter, routing.Steered)
    assert parameter.rule == routing.MoveAverage(0.9)
    assert parameter[...].dtype == jnp.float32
  assert model.kernel[...].dtype == jnp.bfloat16


def test_routing_ignores_later_tokens_and_padding_to_the_bit():
  assert router().causal
  check_nothing_reaches_earlier_tokens(router())


def test_nothing_but_padding_moves_nothing():
  assert check_nothing_but_padding_moves_nothing(router()) == {}


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(k=0), 'k: got 0; above 0, at most 6, the number of experts'),
    (dict(k=6.5), 'k: got 6.5; above 0, at most 6'),
    (dict(decay=1.0), 'decay: got 1.0; at least 0, below 1'),
    (dict(width=0), 'width: got 0; at least 1'),
  ],
)
def test_bad_arguments(options, message):
  with pytest.raises(ValueError, match=message):
    router(**options)
