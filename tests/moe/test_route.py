"""Where tokens would go: the routing of the layer's call, token by token."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.moe import routing
from tests.moe.layer_cases import CASES, QUICK, SLOTS, draw, make

P = jax.P
SHAPE = 8, 5, 6, 8, 7
NAMES = [
  'soft',
  'mixture_of_tokens',
  'tokens_choice',
  'threshold',
  'bias_balanced dropless',
]


def call(name, method, case):
  """Returns what a method of the layer does, compiled."""
  graphdef = nnx.graphdef(make(name, SHAPE))
  run = lambda params, x, mask, ids, key: getattr(
    nnx.merge(graphdef, params), method
  )(x, mask, key=key, token_ids=ids)
  return jax.jit(run, compiler_options=QUICK)(*case[:5])


@functools.cache
def on_one_device(name):
  return call(name, 'route', draw(name, SHAPE, 1))


@pytest.mark.parametrize('name', CASES)
def test_equals_the_counts_of_the_call(name):
  case = draw(name, SHAPE, 1)
  (b, m, _, e, _), mask = SHAPE, case[2]
  routed, (_, aux) = on_one_device(name), call(name, '__call__', case)
  if name in SLOTS:
    assert isinstance(routed, routing.Slots)
    assert routed.dispatch.shape[:3] == (b, m, e)
    assert np.all(np.asarray(routed.dispatch)[~mask] == 0)
    return
  assert routed.gates.shape == routed.granted.shape == (b, m, e)
  metrics = {'wanted': routed.wanted(), 'granted': routed.granted}
  for metric, pairs in metrics.items():
    per_token = np.sum(pairs) / np.sum(mask)
    np.testing.assert_allclose(per_token, aux['metrics'][metric], rtol=1e-6)
  assert np.all(routed.wanted() | ~routed.granted)
  assert not np.any(np.asarray(routed.wanted())[~mask])
  if routed.dropless:
    np.testing.assert_array_equal(routed.granted, routed.wanted())


@pytest.mark.parametrize('name', ['tokens_choice', 'threshold'])
def test_an_expert_keeps_those_of_the_highest_priority(name):
  routed = on_one_device(name)
  refused = routed.wanted() & ~routed.granted
  assert np.any(refused)
  size = CASES[name]['group_size']
  groups = lambda v: np.asarray(v).reshape(SHAPE[0] // size, -1, SHAPE[3])
  kept = np.where(groups(routed.granted), groups(routed.priority), np.inf)
  out = np.where(groups(refused), groups(routed.priority), -np.inf)
  assert np.all(np.min(kept, axis=1) >= np.max(out, axis=1))
  filled = np.sum(groups(routed.granted), axis=1)
  assert np.all(filled <= routed.capacity)
  full = np.any(groups(refused), axis=1)
  assert np.all(filled[full] == routed.capacity)


@pytest.mark.parametrize(
  ('name', 'axes'),
  [(name, axes) for name in NAMES for axes in (('data',), ())]
  + [('bias_balanced dropless', ('data', 'expert'))],
)
def test_on_a_mesh_the_same_is_split_as_the_tokens(mesh, name, axes):
  expected = on_one_device(name)
  params, x, mask, ids, key, _ = draw(name, SHAPE, 1)
  mesh(2, 4)
  x, mask = (jax.device_put(v, P(axes or None)) for v in (x, mask))
  actual = call(name, 'route', (params, x, mask, ids, key, None))
  for a, e in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    assert jax.typeof(a).sharding.spec[0] == jax.typeof(x).sharding.spec[0]
    np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('leading', [(), (2, 4)])
def test_leading_axes(leading):
  params, x, _, _, key, _ = draw('soft', SHAPE, 1)
  x = x[0] if not leading else x.reshape(*leading, *x.shape[1:])
  graphdef = nnx.graphdef(make('uniform_soft', SHAPE))
  shape = jax.eval_shape(
    lambda p, x: nnx.merge(graphdef, p).route(x, key=key),
    draw('uniform_soft', SHAPE, 1)[0],
    jnp.asarray(x),
  ).dispatch.shape
  assert shape == (*leading, 5, 8, 1)


def test_no_expert_runs_and_gates_have_gradients():
  name = 'tokens_choice'
  params, x = jax.tree.map(jnp.asarray, draw(name, SHAPE, 1)[:2])
  graphdef = nnx.graphdef(make(name, SHAPE))
  route = lambda params: nnx.merge(graphdef, params).route(x)
  # The router's.
  assert str(jax.make_jaxpr(route)(params)).count('= dot_general') == 1
  gradients = jax.grad(lambda p: jnp.sum(route(p).gates[..., 0]))(params)
  assert np.any(gradients['router']['kernel'] != 0)
  assert not np.any(gradients['experts']['stacked']['up']['kernel'])


def test_options_reach_the_router():
  name = 'threshold dropless'
  params, x = jax.tree.map(jnp.asarray, draw(name, SHAPE, 1)[:2])
  layer = nnx.merge(nnx.graphdef(make(name, SHAPE)), params)
  everything = layer.route(x, all_experts=True)
  assert np.all(everything.granted)
  few = layer.route(x, threshold=jnp.float32(0.1))
  assert np.all(np.sum(few.granted, axis=-1) == 1)
