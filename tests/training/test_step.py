"""The train step: meshes, micro-batches, and numbers that must not drift."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from softmoe import experiment as experiment_lib
from softmoe.data import prefetch
from softmoe.runs import state as state_lib
from softmoe.training import step as step_lib

STEPS = 20

# Of the first step of `tests/tiny.py`. They change with the model, how it is
# initialised, the order of random keys, the data and the loss: update them when
# one of these is meant to change, and say so.
GOLDEN = {
  'accuracy': 0.0625,
  'gradient_norm': 0.5284505,
  'learning_rate': 0.01,
  'loss': 2.3025827,
  'moe/combine_max': 0.1694942,
  'moe/dispatch_max': 0.3102658,
  'moe/executed': 2.0,  # 8 slots for 4 tokens
  'moe/flops': 4096.0,  # each two matmuls of 16 x 32
  'parameter_norm': 24.9152393,
  'update_norm': 0.1303827,
}


@pytest.fixture(scope='module')
def curve(tiny):
  """Returns a function from a mesh and changes to the metrics of 20 steps."""

  @functools.cache
  def train(data, expert, fsdp=1, **changes):
    mesh = f'data:{data},fsdp:{fsdp},expert:{expert}'
    config = tiny(mesh=mesh, **changes)
    devices = jax.devices()[: data * fsdp * expert]
    experiment = experiment_lib.build(config, devices)
    train_step = step_lib.make_train_step(experiment)
    state, metrics = state_lib.init(experiment), []
    rows = prefetch.local_rows(experiment.mesh, config.data.batch_size)
    local = experiment.task.train_batches(rows)
    placed = prefetch.to_devices(local, experiment.mesh, size=0)
    for _ in range(STEPS):
      state, step_metrics = train_step(state, next(placed))
      metrics.append({k: float(v) for k, v in step_metrics.items()})
    assert train_step._cache_size() == 1, 'compiled more than once'
    return metrics

  return train


def assert_close(actual, expected):
  for name in ('loss', 'gradient_norm', 'parameter_norm'):
    np.testing.assert_allclose(
      [m[name] for m in actual], [m[name] for m in expected], rtol=1e-4
    )
  assert expected[-1]['loss'] < 0.97 * expected[0]['loss'], 'nothing was learnt'


@pytest.mark.parametrize(
  ('sizes', 'parts'),
  [
    pytest.param((2, 2, 2), 2, marks=pytest.mark.slow),
    pytest.param((2, 4), 1, marks=pytest.mark.slow),
    pytest.param((1, 4, 2), 1, marks=pytest.mark.slow),
    pytest.param((2, 4), 2, marks=pytest.mark.slow),
  ],
  ids=str,
)
def test_eight_devices_give_the_curve_of_one(curve, sizes, parts):
  """However weights are placed, in one batch or in micro-batches."""
  assert_close(curve(*sizes, optimizer__accumulate=parts), curve(1, 1))


@pytest.mark.slow
def test_micro_batches_on_one_device_give_the_curve_of_one_batch(curve):
  assert_close(curve(1, 1, optimizer__accumulate=4), curve(1, 1))


@pytest.mark.slow
@pytest.mark.parametrize('router', ['quantile_balanced', 'expert_threshold'])
def test_micro_batches_steer_as_one_batch(curve, router):
  moe = dict(model__moe__router=router, model__moe__k=2)
  assert_close(curve(1, 1, optimizer__accumulate=2, **moe), curve(1, 1, **moe))


def test_golden_first_step(curve):
  first = curve(1, 1)[0]
  assert set(first) == set(GOLDEN)
  for name, value in GOLDEN.items():
    assert first[name] == pytest.approx(value, rel=1e-4), name


def test_norms_are_summed_in_float32():
  """Beside 256, bfloat16 has no place for a quarter."""
  values = [16.0] + 64 * [0.5]
  tree = {str(i): jnp.full(1, v, jnp.bfloat16) for i, v in enumerate(values)}
  norm = step_lib.norm(tree)
  assert norm.dtype == jnp.float32
  assert norm == pytest.approx(272**0.5)


@pytest.mark.parametrize('parts', [1, 2])
def test_the_loss_is_traced_once(tiny, monkeypatch, parts):
  """However many micro-batches, though their weights are needed first."""
  config = tiny('vit', mesh='data:1', optimizer__accumulate=parts)
  experiment = experiment_lib.build(config, jax.devices()[:1])
  calls, loss = [], experiment.task.loss

  def counted(*args):
    calls.append(args)
    return loss(*args)

  monkeypatch.setattr(experiment.task, 'loss', counted)
  step = step_lib.make_train_step(experiment)
  batch = experiment.abstract_batch(config.data.batch_size)
  step.trace(state_lib.abstract(experiment), batch)
  assert len(calls) == 1
