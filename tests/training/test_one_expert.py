"""One expert that every token takes trains as the dense model does."""

import functools

import jax
import numpy as np
import pytest

from softmoe import experiment as experiment_lib
from softmoe.data import prefetch
from softmoe.runs import state as state_lib
from softmoe.training import step as step_lib

STEPS = 6
# Those that give the one expert's output as it is. Soft MoE does not: its slots
# are means of tokens, unless an image is a single one.
ROUTERS = {
  'tokens_choice': dict(k=1, capacity_factor=1.0),
  'tokens_choice dropless': dict(k=1, normalize=True),
  'experts_choice': dict(capacity_factor=1.0),
  'threshold': dict(balance=0.0),
  'bias_balanced': dict(k=1),
  'identity': dict(slots_per_expert=4),  # as many as there are tokens
  'mixture_of_tokens': dict(),  # in groups of one
}
QUICK = ('tokens_choice',)
COMPILED = {'xla_backend_optimization_level': 0}  # in half the time


def curve(config, dense=None):
  """Returns the first parameters, and the losses of the first steps.

  Args:
    config: of the run.
    dense: the parameters of the dense model; None: it is the dense one.
  """
  experiment = experiment_lib.build(config, jax.devices()[:1])
  if dense is None:
    params = experiment.init_params()
  else:
    params = with_dense(experiment.abstract_params, dense)
  first = jax.tree.map(np.asarray, params)
  state = jax.jit(functools.partial(state_lib.create, experiment))(params)
  step, losses = step_lib.make_train_step(experiment), []
  batch = experiment.abstract_batch(config.data.batch_size)
  step = step.lower(state, batch).compile(compiler_options=COMPILED)
  mesh, size = experiment.mesh, config.data.batch_size
  batches = experiment.task.train_batches(prefetch.local_rows(mesh, size))
  placed = prefetch.to_devices(batches, mesh, 0)
  for _, batch in zip(range(STEPS), placed, strict=False):
    state, metrics = step(state, batch)
    losses.append(float(metrics['loss']))
  return first, losses


def with_dense(abstract, dense):
  """Returns the dense model's parameters, its MLP's as those of the expert.

  Those of the router are all alike: they decide nothing between one expert.
  """
  params = jax.tree.map(lambda w: np.full(w.shape, 0.1, w.dtype), abstract)
  copied = dict(dense) | {'blocks': dict(dense['blocks'])}
  expert = jax.tree.map(lambda w: w[None], dense['blocks'][1]['mlp'])
  moe = params['blocks'][1]['mlp'] | {'experts': {'stacked': expert}}
  copied['blocks'][1] = dense['blocks'][1] | {'mlp': moe}
  assert jax.tree.map(np.shape, copied) == jax.tree.map(np.shape, params)
  return jax.tree.map(jax.numpy.asarray, copied)


@pytest.fixture(scope='module')
def dense(tiny):
  return curve(tiny('vit', mesh='data:1'))


def fields(**moe):
  own = dict(blocks=(1,), num_experts=1) | moe
  return dict(mesh='data:1') | {f'model__moe__{k}': v for k, v in own.items()}


@pytest.mark.parametrize(
  'name',
  [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in ROUTERS
  ],
)
def test_one_expert_is_the_dense_model(tiny, dense, name):
  params, losses = dense
  moe = dict(router=name.split()[0]) | ROUTERS[name]
  _, found = curve(tiny('vit', **fields(**moe)), params)
  np.testing.assert_allclose(found, losses, rtol=2e-6)
  assert np.ptp(losses) > 1e-4, 'nothing moved'


@pytest.mark.slow
def test_a_soft_slot_for_several_tokens_is_not(tiny, dense):
  """So that equality is no accident of parameters that do nothing."""
  params, losses = dense
  _, found = curve(tiny('vit', **fields()), params)
  assert np.max(np.abs(np.array(found) - losses)) > 1e-3
