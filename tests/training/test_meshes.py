"""One training step on every mesh against the same step on one device."""

import functools

import jax
import numpy as np
import pytest

from softmoe import experiment as experiment_lib
from softmoe import sharding
from softmoe.runs import state as state_lib
from softmoe.training import step as step_lib

MODELS = {
  'vit': dict(blocks=()),
  'soft': dict(blocks=(2, 3), num_experts=8),
  'tokens_choice': dict(
    blocks=(2, 3),
    num_experts=8,
    router='tokens_choice',
    k=2,
    capacity_factor=1.0,
    noise_std=1.0,
  ),
}
# (data, fsdp, expert)
MESHES = [(1, 1, 1), (2, 1, 4), (4, 1, 2), (1, 2, 4), (2, 2, 2), (1, 8, 1)]
QUICK = {'xla_backend_optimization_level': 0}  # compiles in half the time


@pytest.fixture(scope='module')
def step(tiny):
  """Returns a function from a model and a mesh to one step's results."""

  @functools.cache
  def run(model, scan, data, fsdp, expert, **changes):
    moe = {f'model__moe__{k}': v for k, v in MODELS[model].items()}
    config = tiny(
      'vit',
      mesh=f'data:{data},fsdp:{fsdp},expert:{expert}',
      # Its state after one step is the gradient, free of Adam's division.
      optimizer__name='sgd',
      model__depth=4,
      model__scan=scan,
      **moe,
      **changes,
    )
    devices = jax.devices()[: data * fsdp * expert]
    experiment = experiment_lib.build(config, devices)
    batch = jax.device_put(draw_batch(config), sharding.batch_spec())
    state = draw_state(state_lib.abstract(experiment))
    lowered = step_lib.make_train_step(experiment).lower(state, batch)
    places = jax.tree.map(lambda x: x.sharding, state)
    state, metrics = lowered.compile(compiler_options=QUICK)(state, batch)
    return places, state, metrics

  return run


def draw_batch(config):
  rng = np.random.default_rng(1)
  size = config.data.batch_size
  return {
    'image': rng.integers(0, 256, (size, 8, 8, 1), dtype='u1'),
    'label': rng.integers(0, 10, size, dtype='i'),
  }


def draw_state(abstract):
  """Returns a state none of whose parameters is 0, as those of a head are."""
  rng = np.random.default_rng(0)
  zeros = lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding)
  draw = lambda x: 0.3 * rng.normal(size=x.shape).astype(x.dtype)
  params = jax.tree.map(
    lambda x: jax.device_put(draw(x), x.sharding), abstract['params']
  )
  return jax.tree.map(zeros, abstract) | {'params': params}


def assert_close(actual, expected):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
    actual,
    expected,
  )


QUICKLY = [('soft', True, (2, 2, 2))]
CASES = [(m, s, z) for m in MODELS for s in (True, False) for z in MESHES[1:]]


@pytest.mark.parametrize(
  ('model', 'scan', 'sizes'),
  [
    pytest.param(*case, marks=() if case in QUICKLY else pytest.mark.slow)
    for case in CASES
  ],
  ids=str,
)
def test_loss_gradient_and_step_are_those_of_one_device(
  step, model, scan, sizes
):
  _, expected, expected_metrics = step(model, scan, *MESHES[0])
  places, state, metrics = step(model, scan, *sizes)
  assert_close(state, expected)
  assert_close(metrics, expected_metrics)
  same = lambda x, place: x.sharding.is_equivalent_to(place, x.ndim)
  assert jax.tree.all(jax.tree.map(same, state, places))
