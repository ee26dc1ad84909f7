"""Mixture of Tokens against plain loops; what it promises to decoding."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.moe.routers import mixture_of_tokens

# Tokens, width, experts, group size.
SHAPES = (
  (1, 4, 1, 1),
  (1, 5, 3, 4),
  (7, 4, 1, 7),
  (8, 4, 4, 8),
  (13, 6, 5, 16),
  (16, 8, 8, 16),
  (10, 4, 16, 10),
  (32, 8, 7, 32),
  (24, 3, 12, 32),
  (5, 16, 64, 5),
  (31, 8, 3, 32),
  (2, 2, 9, 3),
)
CASES = 17  # of each shape


def router(width=8, experts=6, **options):
  return mixture_of_tokens.MixtureOfTokens(
    width, experts, rngs=nnx.Rngs(0), **options
  )


# Compiled once a shape: to run it operation by operation takes longer.
@jax.jit
def route(model, x, mask, temperature):
  return model(x, mask=mask, temperature=temperature)[0]


def weigh(x, kernel, mask, group_size, temperature):
  """Returns the weights (places, experts) of a whole group."""
  weights = np.zeros((group_size, kernel.shape[1]), np.float32)
  for expert in range(kernel.shape[1]):
    logits = np.zeros(group_size, np.float32)  # of the zero vector
    for token in range(len(x)):
      if mask[token]:
        logits[token] = x[token] @ kernel[:, expert]
    exp = np.exp((logits - np.max(logits)) / temperature)
    weights[:, expert] = exp / np.sum(exp)
  return weights


def expected_gradient(x, kernel, mask, weights, cotangent, temperature):
  """Returns d sum(cotangent * weights of real tokens) / d(x, kernel)."""
  m = len(x)
  dlogits = np.zeros((m, kernel.shape[1]), np.float32)
  for expert in range(kernel.shape[1]):
    w = weights[:m, expert]
    dw = np.where(mask, cotangent[:, expert], 0)
    dlogits[:, expert] = w * (dw - np.sum(dw * w)) / temperature
  dlogits[~mask] = 0
  return dlogits @ kernel.T, x.T @ dlogits


@functools.partial(jax.jit, static_argnums=0)
def run(graphdef, kernel, x, mask, temperature, cotangents):
  def objective(x, kernel):
    model = nnx.merge(graphdef, nnx.State({'kernel': nnx.Param(kernel)}))
    slots, _ = model(x, mask=mask, temperature=temperature)
    value = jnp.sum(cotangents[0] * slots.dispatch[:, :, 0])
    return value + jnp.sum(cotangents[1] * slots.combine[:, :, 0]), slots

  return jax.grad(objective, (0, 1), has_aux=True)(x, kernel)


@pytest.mark.parametrize('shape', SHAPES)
def test_matches_plain_loops(shape):
  m, d, e, group_size = shape
  graphdef = nnx.graphdef(router(d, e, group_size=group_size))
  for seed in range(CASES):
    rng = np.random.default_rng((seed, *shape))
    skew = rng.choice([0, 0, 2])
    x = rng.normal(size=(m, d)) + skew * rng.normal(size=d)
    x = x.astype(np.float32)
    kernel = rng.normal(size=(d, e)).astype(np.float32) / np.sqrt(d)
    mask = rng.random(m) < rng.choice([0.6, 1.0])
    temperature = np.float32(rng.uniform(0.3, 2))
    cotangents = rng.normal(size=(2, m, e)).astype(np.float32)
    gradient, slots = run(graphdef, kernel, x, mask, temperature, cotangents)
    weights = weigh(x, kernel, mask, group_size, temperature)
    expected = np.where(mask[:, None], weights[:m], 0)
    np.testing.assert_allclose(slots.dispatch[:, :, 0], expected, atol=3e-6)
    np.testing.assert_array_equal(slots.dispatch, slots.combine)
    dx, dkernel = expected_gradient(
      x, kernel, mask, weights, np.sum(cotangents, axis=0), temperature
    )
    np.testing.assert_allclose(gradient[0], dx, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(gradient[1], dkernel, rtol=1e-4, atol=1e-4)


def test_full_group_weighs_to_one_and_padding_is_an_empty_place():
  model = router(group_size=4)
  x = jax.random.normal(jax.random.key(0), (4, 8))
  everyone, nobody = jnp.ones(4, bool), jnp.zeros(4, bool)
  full = route(model, x, everyone, 1.0).dispatch
  np.testing.assert_allclose(jnp.sum(full, axis=0), 1, rtol=1e-6)
  padded = route(model, x, jnp.arange(4) < 3, 1.0).dispatch
  short = route(model, x[:3], everyone[:3], 1.0).dispatch
  np.testing.assert_allclose(padded[:3], short, rtol=1e-6)
  assert np.all(padded[3] == 0)
  assert np.all(np.asarray(route(model, x, nobody, 1.0).dispatch) == 0)
  np.testing.assert_array_equal(model(x)[0].dispatch, full)


def test_padding_reaches_no_one():
  model = router(group_size=4)
  x, other = jax.random.normal(jax.random.key(0), (2, 4, 8))
  mask = jnp.array([True, False, True, False])
  np.testing.assert_array_equal(
    route(model, x, mask, 1.0).dispatch,
    route(model, jnp.where(mask[:, None], x, 9 * other), mask, 1.0).dispatch,
  )


def test_token_alone_has_the_weight_of_one_among_zero_vectors():
  model = router(group_size=32)
  x = jax.random.normal(jax.random.key(0), (1, 8))
  for temperature in (1.0, 0.3):
    exp = np.exp(np.asarray(x @ model.kernel[...]) / temperature)
    actual = route(model, x, jnp.ones(1, bool), temperature).dispatch
    np.testing.assert_allclose(actual[..., 0], exp / (exp + 31), rtol=1e-5)


def test_token_alone_does_not_depend_on_the_batch_at_any_temperature():
  model = router(group_size=4)
  x, other = jax.random.normal(jax.random.key(0), (2, 4, 8))
  first = jnp.arange(4) == 0
  mine = x.at[1:].set(other[1:])
  for temperature in (1.0, 0.01, 0.0):
    alone = route(model, x[:1], first[:1], temperature).dispatch
    crowds = [route(model, g, first, temperature).dispatch for g in (x, mine)]
    np.testing.assert_array_equal(*crowds)
    np.testing.assert_allclose(crowds[0][:1], alone, rtol=1e-5, atol=1e-6)


def sharp_group():
  """Returns a router, a group, and where a token beats group and zero."""
  model = router(8, 4, group_size=4)
  model.kernel[...] = jnp.eye(8, 4)
  x = 0.1 * jax.random.normal(jax.random.key(0), (4, 8))
  x = x.at[jnp.arange(3), jnp.arange(3)].set(2.0)
  x = x.at[:, 3].set(-1.0)  # at expert 3 the zero vector is larger than all
  return model, x, np.eye(4) * (np.arange(4) < 3)


@pytest.mark.parametrize('temperature', [0.02, 1e-30, 0.0])
def test_low_temperature_decodes_alone_as_in_a_full_group(temperature):
  model, x, winners = sharp_group()
  group = route(model, x, jnp.ones(4, bool), temperature).dispatch[..., 0]
  np.testing.assert_allclose(group[:, :3], winners[:, :3], atol=1e-6)
  for token in range(4):
    alone = route(
      model, x[token : token + 1], jnp.ones(1, bool), temperature
    ).dispatch[0, :, 0]
    won = winners[token] == 1
    np.testing.assert_allclose(alone[won], group[token][won], atol=1e-6)
    assert np.all(alone[3:] < 1e-6)


def test_one_hot_limit_takes_one_place_and_has_no_gradient():
  model, x, _ = sharp_group()
  hot = route(model, x, jnp.ones(4, bool), 0.0).dispatch
  assert set(np.unique(hot)) == {0, 1}
  np.testing.assert_array_equal(jnp.sum(hot, axis=0), 1)
  weigh = lambda t: lambda x: jnp.sum(model(x, temperature=t)[0].dispatch[0])
  assert np.all(jax.grad(weigh(0.0))(x) == 0)
  assert np.all(np.isfinite(jax.grad(weigh(1e-30))(x)))


def test_is_marked_for_groups_across_examples():
  assert router().across_examples and router().causal


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(group_size=0), 'group_size: got 0; at least 1'),
    (dict(temperature=-1.0), 'temperature: got -1.0; at least 0'),
    (dict(temperature=float('nan')), 'temperature: got nan; at least 0'),
    (dict(experts=0), 'num_experts: got 0; at least 1'),
  ],
)
def test_bad_arguments(options, message):
  with pytest.raises(ValueError, match=message):
    router(**options)


def test_bad_arguments_of_a_call():
  model = router(group_size=4)
  with pytest.raises(ValueError, match='x: got .5 tokens.; 4 at most'):
    model(jnp.ones((5, 8)))
  with pytest.raises(ValueError, match='temperature: got -0.5; at least 0'):
    model(jnp.ones((4, 8)), temperature=-0.5)
  with pytest.raises(ValueError, match="x: got 'width 5'; 8"):
    model(jnp.ones((4, 5)))
