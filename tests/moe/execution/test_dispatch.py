"""Slots and buffers against loops over tokens, experts and slots."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.moe import experts, routing
from softmoe.moe.execution import dispatch
from softmoe.moe.execution import run as execution

# Groups, tokens, experts, capacity, width.
SHAPES = [(2, 7, 3, 2, 4), (1, 1, 1, 1, 3), (3, 5, 4, 5, 2), (2, 4, 6, 1, 5)]
CASES = 20  # of each shape


def draw(rng, g, m, e):
  """Returns gates and priorities with ties and experts that no one wants."""
  gates = rng.normal(size=(g, m, e)).astype(np.float32)
  priority = rng.integers(0, 3, (g, m, e)).astype(np.float32)
  wanted = rng.random((g, m, e)) < rng.choice([0.2, 0.5, 1.0])
  wanted[..., 0] &= rng.random() < 0.5
  return gates, np.where(wanted, priority, -np.inf)


def queue(priority, capacity):
  """Returns the tokens that one expert keeps, of the priorities (m,)."""
  claims = [t for t in range(len(priority)) if priority[t] > -np.inf]
  return sorted(claims, key=lambda t: (-priority[t], t))[:capacity]


@functools.partial(jax.jit, static_argnums=2)
def there_and_back(gates, priority, capacity, x, scale, dy):
  """Returns slots, y and gradients, where expert e multiplies by scale[e]."""

  def objective(gates, priority, x):
    kept = dispatch.keep(routing.Assignment(gates, priority), capacity)
    slots = dispatch.gather(x, kept)
    outputs = scale[:, None, None, None] * slots
    y = dispatch.scatter(outputs, kept, x.shape[1])
    return jnp.sum(dy * y), (kept, slots, y)

  return jax.grad(objective, (0, 1, 2), has_aux=True)(gates, priority, x)


@pytest.mark.parametrize('shape', SHAPES)
def test_experts_keep_the_highest_priority_up_to_their_capacity(shape):
  g, m, e, capacity, d = shape
  for seed in range(CASES):
    rng = np.random.default_rng((seed, *shape))
    gates, priority = draw(rng, g, m, e)
    x, dy = rng.normal(size=(2, g, m, d)).astype(np.float32)
    scale = rng.normal(size=e).astype(np.float32)
    gradients, (kept, slots, y) = there_and_back(
      gates, priority, capacity, x, scale, dy
    )
    expected = [np.zeros_like(v) for v in (y, gates, x)]
    for i, j in np.ndindex(g, e):
      tokens = queue(priority[i, :, j], capacity)
      np.testing.assert_array_equal(
        kept.filled[i, j], np.arange(capacity) < len(tokens)
      )
      assert list(kept.token[i, j, : len(tokens)]) == tokens
      assert np.all(kept.gate[i, j, len(tokens) :] == 0)
      for s, t in enumerate(tokens):
        np.testing.assert_array_equal(slots[j, i, s], x[i, t])
        expected[0][i, t] += gates[i, t, j] * scale[j] * x[i, t]
        expected[1][i, t, j] = scale[j] * x[i, t] @ dy[i, t]
        expected[2][i, t] += gates[i, t, j] * scale[j] * dy[i, t]
    dgates, dpriority, dx = gradients
    for actual, wanted in zip((y, dgates, dx), expected, strict=True):
      np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)
    assert np.all(dpriority == 0)


def test_earlier_tokens_go_first_among_equals():
  gates = jnp.ones((1, 6, 2))
  priority = jnp.array([[0.0, 1], [2, 1], [2, 1], [0, 1], [2, 1], [0, 1]])
  kept = dispatch.keep(routing.Assignment(gates, priority[None]), 4)
  np.testing.assert_array_equal(kept.token[0], [[1, 2, 4, 0], [0, 1, 2, 3]])


def test_no_wish_is_granted_below_capacity():
  gates = jnp.full((1, 3, 1), 7.0)
  priority = jnp.array([-jnp.inf, 0.0, -jnp.inf])[None, :, None]
  kept = dispatch.keep(routing.Assignment(gates, priority), 3)
  np.testing.assert_array_equal(kept.filled[0, 0], [True, False, False])
  np.testing.assert_array_equal(kept.gate[0, 0], [7, 0, 0])


def test_dense_slots_are_sums_of_tokens_and_back():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 5, 4)).astype(np.float32)
  weights = rng.normal(size=(2, 2, 5, 3, 2)).astype(np.float32)
  slots = dispatch.dispatch(jnp.asarray(x), jnp.asarray(weights[0]))
  y = dispatch.combine(slots, jnp.asarray(weights[1]))
  assert slots.shape == (3, 2, 2, 4)
  expected = np.zeros_like(x)
  for i, e, s in np.ndindex(2, 3, 2):
    slot = sum(weights[0, i, t, e, s] * x[i, t] for t in range(5))
    np.testing.assert_allclose(slots[e, i, s], slot, rtol=1e-5, atol=1e-5)
    for t in range(5):
      expected[i, t] += weights[1, i, t, e, s] * slot
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_slots_have_the_type_of_the_tokens():
  x = jnp.ones((1, 3, 2), jnp.bfloat16)
  weights = jnp.ones((1, 3, 2, 1))
  slots = dispatch.dispatch(x, weights)
  kept = dispatch.keep(routing.Assignment(weights[..., 0], weights[..., 0]), 2)
  assert slots.dtype == dispatch.combine(slots, weights).dtype == jnp.bfloat16
  back = dispatch.scatter(dispatch.gather(x, kept), kept, 3)
  assert back.dtype == jnp.bfloat16


@pytest.mark.parametrize('shape', SHAPES)
def test_one_hot_weights_move_the_same_rows(shape):
  g, m, e, capacity, d = shape
  rng = np.random.default_rng(0)
  gates, priority = map(jnp.asarray, draw(rng, g, m, e))
  x = jnp.asarray(rng.normal(size=(g, m, d)), jnp.float32)
  kept = dispatch.keep(routing.Assignment(gates, priority), capacity)
  slots = dispatch.as_slots(kept, m)
  filled = jnp.swapaxes(kept.filled, 0, 1)[..., None]
  rows = jnp.where(filled, dispatch.gather(x, kept), 0)
  dense = dispatch.dispatch(x, slots.dispatch)
  np.testing.assert_allclose(dense, rows, rtol=1e-6)
  np.testing.assert_allclose(
    dispatch.combine(dense, slots.combine),
    dispatch.scatter(rows, kept, m),
    rtol=1e-5,
    atol=1e-6,
  )


@pytest.mark.parametrize('limit', [0, 2**16])
def test_a_tpu_takes_one_hot_weights_for_small_groups(monkeypatch, limit):
  calls = []
  as_slots = dispatch.as_slots
  monkeypatch.setattr(execution.sharding, 'platform', lambda: 'tpu')
  monkeypatch.setattr(execution, 'ONE_HOT_LIMIT', limit)
  monkeypatch.setattr(
    dispatch, 'as_slots', lambda *args: calls.append(1) or as_slots(*args)
  )
  stack = experts.Experts(
    lambda rngs: nnx.Linear(4, 4, rngs=rngs), 3, rngs=nnx.Rngs(0)
  )
  gates, priority = draw(np.random.default_rng(0), 2, 7, 3)
  routed = routing.Assignment(
    jnp.asarray(gates), jnp.asarray(priority), capacity=2
  )
  x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 7, 4)), jnp.float32)
  y = execution.run(routed, x, stack, None, 'auto').y
  assert bool(calls) == bool(limit)
  monkeypatch.undo()
  expected = execution.run(routed, x, stack, None, 'auto').y
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
