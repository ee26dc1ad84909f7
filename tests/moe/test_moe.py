"""What routers promise in evaluation, options of a call, transformations."""

import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe.models import config as model_config
from softmoe.models import mixtures, vit
from softmoe.moe import layer
from softmoe.moe.routers import hashing

P = jax.P
EXAMPLES, TOKENS, WIDTH, EXPERTS, HIDDEN, VOCABULARY = 8, 8, 6, 4, 7, 9
SEEDS = range(5)
QUICK = {'xla_backend_optimization_level': 0}  # compiles in half the time


class Claims(NamedTuple):
  """What is true of a router, in groups of one example but for `in_group`.

  Attributes:
    causal: no token's output depends on a later token.
    batch_independent: nor on another example.
    in_group: nor on another example in its group, where there are several.
    can_drop: a token may be refused by an expert that it wants.
    continuous: the output is, in the router's weights, across changes of
      choice; None: the choice does not depend on them.
  """

  causal: bool
  batch_independent: bool
  in_group: bool
  can_drop: bool
  continuous: bool | None


DENSE = Claims(False, True, False, False, True)
FIXED = DENSE._replace(continuous=None)
BUFFERS = Claims(False, True, False, True, False)
DROPLESS = Claims(True, True, True, False, False)
TOP_2 = dict(router='tokens_choice', k=2, noise_std=1.0)
EXPERTS_CHOICE = dict(router='experts_choice', noise_std=1.0)
THRESHOLD, BIAS = dict(router='threshold'), dict(router='bias_balanced', k=2)
CASES = {
  'soft': (dict(router='soft'), DENSE),
  'uniform': (dict(router='uniform'), FIXED),
  'uniform_soft': (dict(router='uniform_soft'), DENSE),
  'soft_uniform': (dict(router='soft_uniform'), DENSE),
  'identity': (dict(router='identity'), FIXED),
  'mixture_of_tokens': (
    dict(router='mixture_of_tokens', group_size=2),
    Claims(True, False, False, False, True),
  ),
  'tokens_choice': (TOP_2 | dict(capacity_factor=0.6), BUFFERS),
  'tokens_choice dropless': (TOP_2, DROPLESS),
  'experts_choice': (EXPERTS_CHOICE | dict(capacity_factor=1.0), BUFFERS),
  'threshold': (THRESHOLD | dict(capacity_factor=1.0), BUFFERS),
  'threshold dropless': (THRESHOLD | dict(threshold=0.6), DROPLESS),
  'bias_balanced': (BIAS | dict(capacity_factor=0.6), BUFFERS),
  'bias_balanced dropless': (BIAS, DROPLESS),
  'quantile_balanced': (dict(router='quantile_balanced', k=2), DROPLESS),
  'expert_threshold': (dict(router='expert_threshold', k=2), DROPLESS),
  'relu': (dict(router='relu'), DROPLESS._replace(continuous=True)),
  'segment_soft': (
    dict(router='segment_soft', segment=2),
    Claims(True, True, True, False, True),
  ),
  'hash': ({}, DROPLESS._replace(continuous=None)),
}
# With room for all: as many tokens as the group has.
FITTING = {
  'tokens_choice': TOP_2 | dict(capacity_factor=0.5, eval_capacity_factor=2.0),
  'experts_choice': EXPERTS_CHOICE | dict(capacity_factor=4.0),
  'threshold': THRESHOLD | dict(capacity_factor=1.0, eval_capacity_factor=4.0),
  'bias_balanced': BIAS | dict(capacity_factor=2.0),
}


def make(fields, dtype='float32'):
  """Returns a layer whose parameters are shapes without numbers."""
  config = vit.ViTConfig(
    width=WIDTH,
    mlp_dim=HIDDEN,
    dtype=dtype,
    moe=model_config.MoEConfig(
      **dict(router='relu', num_experts=EXPERTS) | fields
    ),
  )
  module = nnx.eval_shape(lambda: mixtures.make_moe(config, nnx.Rngs(0)))
  if 'router' in fields:
    return module
  router = hashing.HashRouter(EXPERTS, VOCABULARY)
  return layer.MoE(router, module.experts, **fields)


def weights(module, seed):
  rng = np.random.default_rng(seed)
  params = nnx.to_pure_dict(nnx.state(module))
  return jax.tree.map(
    lambda w: rng.normal(0, 0.6, w.shape).astype(np.float32), params
  )


def tokens(seed, shape=(EXAMPLES, TOKENS)):
  """Returns tokens that prefer the same experts, and their ids."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(*shape, WIDTH)) + 2 * rng.normal(size=WIDTH)
  return x.astype(np.float32), rng.integers(0, VOCABULARY, shape)


@functools.cache
def evaluate(name, group_size):
  """Returns the layer and its compiled evaluation."""
  fields = dict(CASES[name][0])
  if name not in ('mixture_of_tokens', 'segment_soft'):
    fields['group_size'] = group_size
  module = make(fields)
  graphdef = nnx.graphdef(module)

  def run(params, x, ids):
    options = {'token_ids': ids} if name == 'hash' else {}
    return nnx.merge(graphdef, params)(x, **options)

  return module, jax.jit(run, compiler_options=QUICK)


def unchanged(name, group_size, change, watch):
  """Tells for some draws whether `watch` of the output is as it was.

  Args:
    name: of the case.
    group_size: examples of a group.
    change: index of the tokens that are replaced by others.
    watch: index of the tokens that are looked at.
  """
  module, run = evaluate(name, group_size)
  results = []
  for seed in SEEDS:
    params, (x, ids) = weights(module, seed), tokens(seed)
    before, _ = run(params, x, ids)
    x, ids = x.copy(), ids.copy()  # JAX may still be reading the others
    for old, new in zip((x, ids), tokens(seed + 100), strict=True):
      old[change] = new[change]
    after, _ = run(params, x, ids)
    assert np.any(after[change] != before[change]) or name == 'uniform'
    results.append(np.allclose(after[watch], before[watch], atol=1e-6))
  return results


def agree(results, claim):
  return all(results) if claim else not all(results)


@pytest.mark.parametrize('name', CASES)
def test_dependence_on_later_tokens(name):
  claims = CASES[name][1]
  later, earlier = np.s_[:, 3:], np.s_[:, :3]
  assert agree(unchanged(name, 1, later, earlier), claims.causal)
  router = evaluate(name, 1)[0].router
  assert getattr(router, 'causal', claims.causal) == claims.causal


@pytest.mark.parametrize('name', CASES)
def test_dependence_on_batch_mates(name):
  claims = CASES[name][1]
  others, first = np.s_[1:], np.s_[:1]
  assert agree(unchanged(name, 1, others, first), claims.batch_independent)
  assert agree(unchanged(name, 2, others, first), claims.in_group)
  assert all(unchanged(name, 2, np.s_[2:], np.s_[:2]))  # other groups


@pytest.mark.parametrize('name', CASES)
def test_dropped_tokens(name):
  module, run = evaluate(name, 1)
  full = []
  for seed in SEEDS:
    y, aux = run(weights(module, seed), *tokens(seed))
    metrics = aux['metrics']
    if 'granted' in metrics:
      full.append(metrics['granted'] == metrics['wanted'])
    else:
      served = y[:, getattr(module.router, 'segment', 0) :]
      full.append(np.all(np.any(served != 0, axis=-1)))
  assert agree(full, not CASES[name][1].can_drop)


@pytest.mark.parametrize('name', FITTING)
def test_nothing_is_dropped_where_the_capacity_fits(name):
  module = make(FITTING[name])
  graphdef = nnx.graphdef(module)
  run = jax.jit(
    lambda params, x: nnx.merge(graphdef, params)(x)[1]['metrics'],
    compiler_options=QUICK,
  )
  for seed in SEEDS:
    metrics = run(weights(module, seed), tokens(seed)[0])
    assert metrics['granted'] == metrics['wanted'] > 0


@pytest.mark.parametrize('name', CASES)
def test_no_noise_without_a_key(name):
  module, run = evaluate(name, 1)
  graphdef, params = nnx.graphdef(module), weights(module, 0)
  x, ids = tokens(0)
  options = {'token_ids': jnp.asarray(ids)} if name == 'hash' else {}
  draws = lambda key: (
    'random_bits'
    in str(
      jax.make_jaxpr(
        lambda p, x: nnx.merge(graphdef, p)(x, key=key, **options)
      )(params, x)
    )
  )
  assert not draws(None)
  assert draws(jax.random.key(0)) == ('noise_std' in CASES[name][0])
  first, second = run(params, x, ids), run(params, x, ids)
  jax.tree.map(np.testing.assert_array_equal, first, second)


def largest_jump(f):
  """Returns the largest jump of f found over two millionths of [0, 1]."""
  low, high, jump = 0.0, 1.0, 0.0
  for points in (129, 17, 17, 17):
    at = np.linspace(low, high, points)
    values = np.stack([f(t) for t in at])
    steps = np.max(np.abs(np.diff(values, axis=0)).reshape(points - 1, -1), 1)
    i = np.argmax(steps)
    low, high, jump = at[i], at[i + 1], steps[i]
  return jump


@pytest.mark.parametrize('name', CASES)
def test_continuity_in_the_weights_of_the_router(name):
  module, run = evaluate(name, 1)
  (x, ids), start, end = tokens(0), weights(module, 0), weights(module, 1)

  def output(t):
    move = lambda a, b: np.float32(a + t * (b - a))
    router = jax.tree.map(move, start.get('router', {}), end.get('router', {}))
    return run(start | {'router': router} if router else start, x, ids)[0]

  claim = CASES[name][1].continuous
  if claim is None:
    np.testing.assert_array_equal(output(0.0), output(1.0))
  elif claim:
    assert largest_jump(output) < 1e-3
  else:
    assert largest_jump(output) > 1e-2


@pytest.mark.parametrize('sizes', [None, (2, 4)], ids=str)
@pytest.mark.parametrize(
  ('fields', 'name', 'value'),
  [
    (THRESHOLD, 'threshold', 0.4),
    (THRESHOLD, 'all_experts', True),
    (CASES['mixture_of_tokens'][0], 'temperature', 0.3),
  ],
)
def test_options_of_a_call_are_those_of_the_router(
  mesh, sizes, fields, name, value
):
  module = make(fields)
  graphdef, params = nnx.graphdef(module), weights(module, 0)
  x, _ = tokens(0, (16, 3))
  if sizes:
    mesh(*sizes)
    params['experts'] = jax.tree.map(
      lambda w: jax.device_put(w, P('expert')), params['experts']
    )
    x = jax.device_put(x, P(('data', 'expert')))
  array = not isinstance(value, bool)

  def run(params, x, traced):
    module = nnx.merge(graphdef, params)
    called = [module(x), module(x, **{name: value})]
    called += [module(x, **{name: traced})] if array else []
    setattr(module.router, name, value)
    return [y for y, _ in (*called, module(x))]

  run = jax.jit(run, compiler_options=QUICK)
  default, *given, expected = run(params, x, jnp.float32(value))
  assert not np.allclose(default, expected, atol=1e-3)
  for y in given:
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


TRANSFORMED = [
  'tokens_choice',
  pytest.param('threshold dropless', marks=pytest.mark.slow),
]


@pytest.mark.parametrize('name', TRANSFORMED)
def test_scan_remat_and_vmap_over_layers(name):
  module = make(CASES[name][0])
  graphdef, (x, _) = nnx.graphdef(module), tokens(0)
  layers = [weights(module, seed) for seed in (0, 1)]
  stacked = jax.tree.map(lambda *w: np.stack(w), *layers)
  apply = lambda params, x: nnx.merge(graphdef, params)(x)[0]
  pick = lambda tree, i: jax.tree.map(lambda w: w[i], tree)

  def loop(stacked, x):
    for i in range(2):
      x = x + apply(pick(stacked, i), x)
    return jnp.sum(x**2)

  def scan(stacked, x):
    block = jax.checkpoint(lambda x, params: (x + apply(params, x), None))
    return jnp.sum(jax.lax.scan(block, x, stacked)[0] ** 2)

  def side_by_side(stacked, x):
    return sum(jnp.sum(apply(pick(stacked, i), x) ** 2) for i in range(2))

  def vmap(stacked, x):
    return jnp.sum(jax.vmap(apply, in_axes=(0, None))(stacked, x) ** 2)

  for plain, transformed in ((loop, scan), (side_by_side, vmap)):
    expected, actual = (
      jax.jit(jax.value_and_grad(f, (0, 1)), compiler_options=QUICK)(stacked, x)
      for f in (plain, transformed)
    )
    jax.tree.map(
      lambda a, e: np.testing.assert_allclose(
        a, e, rtol=1e-5, atol=1e-5 * max(1, np.max(np.abs(e)))
      ),
      actual,
      expected,
    )


@pytest.mark.parametrize('name', TRANSFORMED)
def test_bfloat16_tokens(name):
  params, (x, _) = weights(make(CASES[name][0]), 0), tokens(0)
  # The router computes in float32: of equal tokens it makes equal choices.
  x = jnp.asarray(x, jnp.bfloat16)

  def run(dtype):
    graphdef = nnx.graphdef(make(CASES[name][0], dtype))

    def loss(params, x):
      y, aux = nnx.merge(graphdef, params)(x)
      return jnp.sum(y.astype(jnp.float32) ** 2), (y, aux['metrics'])

    f = jax.jit(jax.grad(loss, (0, 1), has_aux=True), compiler_options=QUICK)
    return f(params, x.astype(dtype))

  expected, (y, metrics) = run('float32')
  actual, (low, low_metrics) = run('bfloat16')
  assert low.dtype == actual[1].dtype == jnp.bfloat16
  assert low_metrics['granted'] == metrics['granted']
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(
      np.float32(a), e, atol=0.03 * np.max(np.abs(e))
    ),
    (low, actual),
    (y, expected),
  )


def call(fields, examples, axes=None):
  module, x = make(fields), jnp.asarray(tokens(0, (examples, 3))[0])
  x = x if axes is None else jax.device_put(x, jax.P(axes))
  run = lambda params, x: nnx.merge(nnx.graphdef(module), params)(x)
  return jax.eval_shape(run, weights(module, 0), x)[0].shape


def test_examples_must_fill_the_groups(mesh):
  with pytest.raises(ValueError, match="got '7 examples'; a multiple of 2, "):
    call(THRESHOLD | dict(group_size=2), 7)
  mesh(2, 2)
  fields = THRESHOLD | dict(group_size=2)
  with pytest.raises(ValueError, match="got '4 examples'; a multiple of 8, "):
    call(fields, 4, ('data', 'expert'))
  for axes in ('data', ()):
    assert call(fields, 4, axes) == (4, 3, WIDTH)


def test_groups_across_few_examples(mesh):
  fields = dict(router='mixture_of_tokens', group_size=32)
  assert call(fields, 3) == (3, 3, WIDTH)
  mesh(2, 2)
  with pytest.raises(ValueError, match="got '8 examples'; a multiple of 32, "):
    call(fields, 8, ('data', 'expert'))
