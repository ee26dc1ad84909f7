"""Layer-wise decay of the learning rate, and parameters that stay."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from softmoe import experiment as experiment_lib
from softmoe.config import OptimizerConfig
from softmoe.errors import UserError
from softmoe.optim import optimizer, shares

PATHS = {
  'patches/kernel': 0.125,
  'vocabulary/embedding': 0.125,
  'vocabulary/head': 1.0,
  'blocks/0/norm': 0.25,
  'blocks/1/mlp/experts/kernel': 0.5,
  'blocks/1/mlp/router/kernel': 0.5,
  'norm/scale': 1.0,
  'head/kernel': 1.0,
}


def tree(values):
  """Returns nested dicts, the number of a block as an int."""
  result = {}
  for path, value in values.items():
    *parents, leaf = [int(k) if k.isdigit() else k for k in path.split('/')]
    node = result
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = value
  return result


def of_params(**fields):
  return shares.of_params(OptimizerConfig(**fields), tree(PATHS))


def test_the_rate_falls_from_the_head_to_the_embeddings():
  assert of_params(layer_decay=0.5) == tree(PATHS)


@pytest.mark.parametrize(
  ('pattern', 'trained'),
  [
    ('(?!.*/experts/).*', {'blocks/1/mlp/experts/kernel'}),
    ('(?!.*/router/).*', {'blocks/1/mlp/router/kernel'}),
    ('(?!head/).*', {'head/kernel'}),
    ('blocks/.*', {k for k in PATHS if not k.startswith('blocks')}),
  ],
)
def test_patterns_leave_experts_router_or_head_to_train(pattern, trained):
  expected = tree({path: float(path in trained) for path in PATHS})
  assert of_params(frozen=(pattern,)) == expected


@pytest.mark.parametrize('name', ['sgd', 'adamw', 'adafactor'])
def test_shares_are_of_the_whole_update_and_frozen_gradients_are_in_no_norm(
  name,
):
  config = OptimizerConfig(
    name, clip_norm=0.5, weight_decay=(('.*', 0.1),), learning_rate=1.0
  )
  rng = np.random.default_rng(0)
  normal = lambda: jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
  params = {'a': normal(), 'b': normal(), 'scan': normal()}
  params['scalar'] = jnp.float32(0.3)
  gradients = jax.tree.map(lambda w: jnp.sin(3 * w), params)
  share = {'a': 0.0, 'b': 1.0, 'scan': [0.5, 0.25], 'scalar': 0.5}
  share = {k: np.asarray(v, np.float32) for k, v in share.items()}
  rate = lambda step: 0.1

  def update(gradients, *given):
    tx = optimizer.make_optimizer(config, rate, params, *given)
    return tx.update(gradients, tx.init(params), params)[0]

  found = update(gradients, share)
  hidden = gradients | {'a': jnp.zeros((2, 3))}
  expected = update(hidden)
  np.testing.assert_array_equal(found['a'], np.zeros((2, 3)))
  np.testing.assert_allclose(found['b'], expected['b'], rtol=1e-6)
  scale = np.array([[0.5], [0.25]])
  np.testing.assert_allclose(found['scan'], scale * expected['scan'], rtol=1e-6)
  half = 0.5 * expected['scalar']
  np.testing.assert_allclose(found['scalar'], half, rtol=1e-6)


def test_blocks_of_a_scan_have_shares_and_decay_of_their_own(tiny):
  config = tiny(
    'vit', mesh='data:1', model__depth=4, model__scan=True,
    optimizer__layer_decay=0.5, optimizer__frozen=('blocks/2/.*',),
    optimizer__weight_decay=(('blocks/1/.*', 0.0), ('blocks/.*', 0.1)),
    optimizer__name='sgd', optimizer__learning_rate=1.0,
    optimizer__momentum=0.0, optimizer__schedule__name='constant',
  )  # fmt: skip
  experiment = experiment_lib.build(config, devices=jax.devices()[:1])
  ones = lambda w: jnp.ones(w.shape, w.dtype)
  params = jax.tree.map(ones, experiment.abstract_params)
  tx = experiment.optimizer
  updates, _ = tx.update(params, tx.init(params), params)
  bias = updates['blocks'][0]['mlp']['up']['bias']
  np.testing.assert_allclose(-bias[:, 0], [0.0625 * 1.1, 0.125, 0, 0.5 * 1.1])
  np.testing.assert_allclose(-updates['head']['bias'], 1)
  np.testing.assert_allclose(-updates['patches']['position'], 0.03125)


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    (dict(frozen=('nothing',)), "optimizer.frozen: got 'nothing'; a regex of"),
    (dict(frozen=('(',)), 'a regular expression'),
    (dict(frozen=('.*',)), 'leave something to train'),
  ],
)
def test_bad_patterns_are_named(fields, expected):
  with pytest.raises(UserError, match=expected):
    of_params(**fields)


def test_a_decay_needs_blocks():
  config = OptimizerConfig(layer_decay=0.5)
  with pytest.raises(UserError, match='layer_decay: got 0.5; 1: this model'):
    shares.of_params(config, {'a': 0})
