"""An MLP as experts: who has which units, and that the sum is the same."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.moe import experts as moe_experts
from softmoe.moe import layer, mlp
from softmoe.moe.routers import threshold
from softmoe.weights.split import clusters, experts, router

WIDTH, UNITS, TOKENS = 6, 12, 40


@jax.jit
def call(layer, x, threshold=None):
  return layer(x, threshold=threshold)


def parts(num_experts):
  rngs = nnx.Rngs(num_experts)
  order = jax.random.permutation(rngs.params(), UNITS)
  return np.sort(np.asarray(order).reshape(num_experts, -1), axis=1)


def random(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def dense(activation):
  """Returns an MLP whose biases are not near 0, and its parameters."""
  module = mlp.Mlp(WIDTH, UNITS, activation=activation, rngs=nnx.Rngs(0))
  params = nnx.to_pure_dict(nnx.state(module))
  for i, linear in enumerate(params.values()):
    linear['bias'] = random(i, *linear['bias'].shape)
  nnx.update(module, params)
  return module, jax.tree.map(np.asarray, params)


def mixture(params, activation, num_experts):
  """Returns the layer, with every expert on."""
  rngs = nnx.Rngs(0)
  make = lambda units: (
    lambda rngs: mlp.Mlp(WIDTH, units, activation=activation, rngs=rngs)
  )
  made = layer.MoE(
    threshold.Threshold(
      WIDTH, num_experts, weighted=False, all_experts=True, rngs=rngs
    ),
    moe_experts.Experts(make(UNITS // num_experts), num_experts, rngs=rngs),
    shared=make(1)(rngs),
  )
  nnx.update(made, jax.tree.map(jnp.asarray, params))
  return made


@pytest.mark.parametrize(
  ('activation', 'num_experts'),
  [('gelu', 12), pytest.param('swiglu', 3, marks=pytest.mark.slow)],
)
def test_with_every_expert_on_the_layer_is_the_mlp(activation, num_experts):
  module, params = dense(activation)
  x, units = random(9, TOKENS, WIDTH), parts(num_experts)
  hidden = np.asarray(module.hidden(jnp.asarray(x)))
  mean, _ = experts.outputs(hidden, params['down']['kernel'], units)
  kernel = random(8, WIDTH, num_experts)
  split = experts.layer(params, units, mean, kernel)
  made = mixture(split, activation, num_experts)
  y, aux = call(made, x)
  np.testing.assert_allclose(y, module(jnp.asarray(x)), atol=1e-5)
  assert aux['metrics']['wanted'] == num_experts
  sparse, aux = call(made, x, 0.5)
  assert aux['metrics']['wanted'] < num_experts
  assert np.max(np.abs(sparse - y)) > 1e-2


def test_an_expert_that_does_not_run_is_its_mean():
  module, params = dense('relu')
  x, units = random(9, TOKENS, WIDTH), parts(3)
  hidden = np.asarray(module.hidden(jnp.asarray(x)))
  mean, _ = experts.outputs(hidden, params['down']['kernel'], units)
  kernel = np.zeros((WIDTH, 3), np.float32)  # of equals, the first runs
  made = mixture(experts.layer(params, units, mean, kernel), 'relu', 3)
  y, _ = call(made, x, 0.1)
  down = params['down']
  first = hidden[:, units[0]] @ down['kernel'][units[0]]
  expected = first + mean[1] + mean[2] + down['bias']
  np.testing.assert_allclose(y, expected, atol=1e-5)


def test_shares_are_of_the_squared_deviations():
  hidden, down = random(1, TOKENS, UNITS), random(2, UNITS, WIDTH)
  units = parts(4)
  mean, share = experts.outputs(hidden, down, units)
  np.testing.assert_allclose(share.sum(axis=1), 1, rtol=1e-5)
  totals = []
  for e, own in enumerate(units):
    y = sum(hidden[:, u, None] * down[u] for u in own)
    np.testing.assert_allclose(mean[e], y.mean(axis=0), atol=1e-5)
    totals.append(np.sum((y - y.mean(axis=0)) ** 2, axis=1) / share[:, e])
  np.testing.assert_allclose(totals, [totals[0]] * 4, rtol=1e-3)


def test_units_that_are_active_together_share_an_expert():
  together = np.repeat([0, 1, 2], 4)  # which of three patterns a unit follows
  order = np.random.default_rng(0).permutation(12)
  patterns = np.abs(random(3, 200, 3))
  activity = patterns[:, together[order]] * (1 + np.arange(12))
  activity = activity + 0.1 * random(4, 200, 12)
  units = clusters.balanced(activity, 3, seed=0)
  assert sorted(units.ravel()) == list(range(12))
  for own in units:
    assert len(set(together[order][own])) == 1


def test_clusters_are_of_one_size_whatever_the_units_do():
  activity = np.zeros((30, 12), np.float32)  # of units that never vary
  activity[:, 0] = random(5, 30)
  units = clusters.balanced(activity, 4, seed=0)
  assert units.shape == (4, 3)
  assert sorted(units.ravel()) == list(range(12))


def test_a_router_finds_shares_that_a_router_can_say():
  x, kernel = random(6, 4000, WIDTH), 2 * random(7, WIDTH, 5)
  share = np.asarray(jax.nn.softmax(x @ kernel))
  found = router.fit(x, share)
  said = np.asarray(jax.nn.softmax(x @ found.astype(np.float32)))
  assert np.mean(np.abs(said - share)) < 0.01
