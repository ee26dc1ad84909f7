"""Optimizers against a few lines of numpy; decay by path; sharded moments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from softmoe.config import OptimizerConfig
from softmoe.errors import UserError
from softmoe.moe import routing
from softmoe.optim import optimizer, steered

P = jax.P
KERNELS = (('head/kernel', 3.0), ('.*/kernel', 0.03))


def make_params():
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return {
    'blocks': {
      0: {'mlp': {'up': {'kernel': normal(4, 8), 'bias': normal(8)}}},
      1: {
        'moe': {
          'router': {'phi': normal(4, 8), 'scale': jnp.ones(())},
          'experts': {'up': {'kernel': normal(8, 32, 48)}},
        }
      },
    },
    'head': {'kernel': normal(4, 3), 'bias': normal(3)},
  }


def gradients(step, params):
  return jax.tree.map(lambda p: jnp.sin(p * 3 + step), params)


def train(config, params, steps=5):
  tx = optimizer.make_optimizer(config, rate, params)
  state = tx.init(params)
  for step in range(steps):
    updates, state = tx.update(gradients(step, params), state, params)
    params = optax.apply_updates(params, updates)
  return params


def rate(step):
  return 0.1 / (1 + step)


def numpy_adamw(config, params, decay, steps=5):
  w = {k: np.asarray(v, 'd') for k, v in params.items()}
  m = {k: np.zeros_like(v) for k, v in w.items()}
  v = {k: np.zeros_like(v) for k, v in w.items()}
  for t in range(steps):
    g = {k: np.sin(w[k] * 3 + t) for k in w}
    norm = np.sqrt(sum((x**2).sum() for x in g.values()))
    for k in w:
      x = g[k] * min(1, config.clip_norm / norm) if config.clip_norm else g[k]
      m[k] = config.b1 * m[k] + (1 - config.b1) * x
      v[k] = config.b2 * v[k] + (1 - config.b2) * x**2
      m_hat = m[k] / (1 - config.b1 ** (t + 1))
      v_hat = v[k] / (1 - config.b2 ** (t + 1))
      w[k] -= rate(t) * (m_hat / (np.sqrt(v_hat) + 1e-8) + decay[k] * w[k])
  return w


@pytest.mark.parametrize('clip_norm', [0.0, 0.5])
@pytest.mark.parametrize(
  ('name', 'rules', 'decay'),
  [
    ('adam', (), {'a': 0.0, 'b': 0.0}),
    ('adamw', (('a', 0.3),), {'a': 0.3, 'b': 0.0}),
  ],
)
def test_adam_is_that_of_numpy(name, rules, decay, clip_norm):
  rng = np.random.default_rng(0)
  params = {'a': rng.normal(size=(3, 4)), 'b': rng.normal(size=4)}
  params = {k: jnp.asarray(v, jnp.float32) for k, v in params.items()}
  config = OptimizerConfig(
    name, b1=0.8, b2=0.95, weight_decay=rules, clip_norm=clip_norm
  )
  expected = numpy_adamw(config, params, decay)
  for k, w in train(config, params).items():
    np.testing.assert_allclose(w, expected[k], rtol=1e-5, atol=1e-6)


def test_sgd_is_that_of_numpy():
  w = np.linspace(-1, 1, 6)
  config = OptimizerConfig('sgd', momentum=0.7, weight_decay=(('w', 0.2),))
  actual = train(config, {'w': jnp.asarray(w, jnp.float32)})['w']
  trace = np.zeros_like(w)
  for t in range(5):
    trace = np.sin(w * 3 + t) + 0.7 * trace
    w = w - rate(t) * (trace + 0.2 * w)
  np.testing.assert_allclose(actual, w, rtol=1e-5, atol=1e-6)


def test_adafactor_is_that_of_numpy():
  """Row and column means of the squared gradient stand for all of it."""
  w = np.random.default_rng(0).normal(size=(32, 48))
  config = OptimizerConfig('adafactor', b1=0.9, b2=0.6)
  actual = train(config, {'w': jnp.asarray(w, jnp.float32)})['w']
  rows, columns, m = np.zeros((32, 1)), np.zeros((1, 48)), 0
  for t in range(5):
    g = np.sin(w * 3 + t)
    beta = min(0.6, 1 - (t + 1) ** -0.8)
    rows = beta * rows + (1 - beta) * (g**2).mean(1, keepdims=True)
    columns = beta * columns + (1 - beta) * (g**2).mean(0, keepdims=True)
    m = 0.9 * m + 0.1 * g / np.sqrt(rows * columns / rows.mean())
    w = w - rate(t) * m
  np.testing.assert_allclose(actual, w, rtol=1e-4, atol=1e-5)


def test_decay_rates_first_match_of_the_whole_path_wins():
  rates = optimizer.decay_rates(make_params(), KERNELS)
  assert rates['head'] == {'kernel': 3.0, 'bias': 0.0}
  assert rates['blocks'][0]['mlp']['up'] == {'kernel': 0.03, 'bias': 0.0}
  assert rates['blocks'][1]['moe']['experts']['up']['kernel'] == 0.03


def test_router_has_no_decay_unless_asked():
  rates = optimizer.decay_rates(make_params(), KERNELS)
  assert rates['blocks'][1]['moe']['router'] == {'phi': 0.0, 'scale': 0.0}
  rules = (*KERNELS, ('.*router/scale', 0.03))
  rates = optimizer.decay_rates(make_params(), rules)
  assert rates['blocks'][1]['moe']['router'] == {'phi': 0.0, 'scale': 0.03}


@pytest.mark.parametrize(
  'rules',
  [
    (('(', 0.1),),  # does not compile
    (('kernel', 0.1),),  # a part of paths, a whole one of none
    (('.*', 0.1), ('head/kernel', 3.0)),  # the second never decides
    (('.*/kernel', -0.1),),
  ],
)
def test_bad_decay_rules(rules):
  with pytest.raises(UserError) as error:
    optimizer.decay_rates(make_params(), rules)
  assert error.value.field == 'config.optimizer.weight_decay'
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('config', 'field'),
  [
    (OptimizerConfig('lion'), 'name'),
    (OptimizerConfig('adam', weight_decay=KERNELS), 'weight_decay'),
  ],
)
def test_bad_input_names_the_field(config, field):
  with pytest.raises(UserError) as error:
    optimizer.make_optimizer(config, rate, make_params())
  assert error.value.field == f'config.optimizer.{field}'


def test_moments_of_bfloat16_parameters_are_float32():
  params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), make_params())
  config = OptimizerConfig('adamw')
  state = optimizer.make_optimizer(config, rate, params).init(params)
  moments = optax.tree.get(state, 'mu')
  assert {m.dtype for m in jax.tree.leaves(moments)} == {jnp.dtype('float32')}


def sharded_update(config, mesh_shape):
  """Returns updated parameters and moments; experts are sharded if they can."""
  devices = jax.devices()[: np.prod(mesh_shape)]
  mesh = jax.make_mesh(mesh_shape, ('data', 'expert'), devices=devices)
  with jax.set_mesh(mesh):
    params = make_params()
    experts = params['blocks'][1]['moe']['experts']
    params['blocks'][1]['moe']['experts'] = jax.device_put(experts, P('expert'))
    tx = optimizer.make_optimizer(config, rate, params)
    state = jax.jit(tx.init)(params)
    specs = jax.tree.map(lambda x: jax.typeof(x).sharding, (params, state))

    @jax.jit
    def step(params, state):
      update = jax.sharding.auto_axes(tx.update, out_sharding=specs)
      updates, state = update(gradients(0, params), state, params)
      return optax.apply_updates(params, updates), state

    for _ in range(2):
      params, state = step(params, state)
    return params, state


@pytest.mark.parametrize('name', ['adamw', 'adafactor', 'sgd'])
def test_update_on_an_explicit_mesh(name):
  config = OptimizerConfig(name, weight_decay=KERNELS, clip_norm=1.0)
  params, state = sharded_update(config, (2, 4))
  single = sharded_update(config, (1, 1))
  expert = ('blocks', 1, 'moe', 'experts', 'up', 'kernel')
  for leaf in moments_of((params, state), expert):
    assert leaf.sharding.spec[0] == 'expert'
  for a, b in zip(
    jax.tree.leaves((params, state)), jax.tree.leaves(single), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def moments_of(tree, path):
  """Returns the leaves that have the shape and the path of a parameter."""
  suffix = tuple(jax.tree_util.DictKey(key) for key in path)
  found = [
    leaf
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    if keys[-len(suffix) :] == suffix and leaf.ndim == 3
  ]
  assert len(found) >= 2  # the parameter itself and at least one moment
  return found


def test_a_steered_parameter_is_moved_by_its_rule():
  params = make_params()
  router = params['blocks'][1]['moe']['router']
  router['bias'] = jnp.zeros(4)
  rules = jax.tree.map(lambda _: None, params)
  rules['blocks'][1]['moe']['router']['bias'] = routing.StepBySign(0.25)
  config = OptimizerConfig('adamw', weight_decay=KERNELS, clip_norm=0.1)
  plain = optimizer.make_optimizer(config, rate, params)
  tx = steered.steered(plain, rules)

  statistic = jnp.array([1.0, -1.0, 0.0, 100.0])
  expected_gradients = gradients(0, params)
  expected_gradients['blocks'][1]['moe']['router']['bias'] = jnp.zeros(4)
  given = gradients(0, params)
  given['blocks'][1]['moe']['router']['bias'] = statistic
  updates, _ = tx.update(given, tx.init(params), params)
  expected, _ = plain.update(expected_gradients, plain.init(params), params)

  moved = updates['blocks'][1]['moe']['router'].pop('bias')
  expected['blocks'][1]['moe']['router'].pop('bias')
  np.testing.assert_array_equal(moved, [-0.25, 0.25, 0, -0.25])
  jax.tree.map(np.testing.assert_array_equal, updates, expected)


@pytest.mark.parametrize('name', ['adamw', 'adafactor', 'sgd'])
def test_state_is_float32_and_decays_whatever_the_parameters_are(name):
  """In bfloat16 the decay 0.999 is 1: a second moment would never fall."""
  config = OptimizerConfig(name)
  params = {'w': jnp.ones((64, 64), jnp.bfloat16)}
  tx = optimizer.make_optimizer(config, rate, params)
  state = tx.init(params)
  large = {'w': jnp.full((64, 64), 2, jnp.bfloat16)}
  updates, state = tx.update(large, state, params)
  floats = lambda s: [x for x in jax.tree.leaves(s) if x.dtype.kind != 'i']
  assert {x.dtype for x in floats(state)} == {np.dtype('float32')}
  before = [np.array(x) for x in floats(state)]
  _, state = tx.update(jax.tree.map(jnp.zeros_like, large), state, params)
  for old, new in zip(before, floats(state), strict=True):
    if old.size > 1:
      assert (np.abs(new) < np.abs(old)).all()
  assert updates['w'].dtype == jnp.float32
