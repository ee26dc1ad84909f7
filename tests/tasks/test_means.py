"""Loss and accuracy over a split, padding aside."""

import dataclasses
import pathlib
import runpy

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe import experiment as experiment_lib
from softmoe.data.images import batches
from softmoe.errors import UserError
from softmoe.tasks import means, registry

TINY = pathlib.Path(__file__).parents[1] / 'tiny.py'
parse = runpy.run_path(str(TINY))['parse']


@pytest.fixture(scope='module')
def experiment():
  config = parse('vit', mesh='data:1', data__eval_batch_size=32, model__depth=1)
  return experiment_lib.build(config, jax.devices()[:1])


@pytest.fixture(scope='module')
def params(experiment):
  """Returns parameters that tell the classes apart: the head is not zero."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype),
    experiment.abstract_params,
  )


def with_data(experiment, data):
  config = dataclasses.replace(experiment.config, data=data)
  task = registry.find(config.task)(config)
  return dataclasses.replace(experiment, config=config, task=task)


@pytest.mark.parametrize('batch_size', [32, 100, 128])
def test_metrics_are_means_over_the_examples_alone(
  experiment, params, batch_size
):
  """Of 100, which fill three batches of 32 and a part of a fourth."""
  (batch,) = batches.eval_batches(
    parse(data__eval_batch_size=100).data, 'test[:100]'
  )
  jax.set_mesh(experiment.mesh)
  model = nnx.merge(experiment.graphdef, params)
  images = {'image': jnp.asarray(batch['image'])}
  logits = experiment.task.infer(model, images)
  logits = np.asarray(logits, np.float64)
  log_sums = np.log(np.exp(logits).sum(-1))
  losses = log_sums - logits[np.arange(100), batch['label']]

  data = parse(data__eval_batch_size=batch_size).data
  experiment = with_data(experiment, data)
  metrics = experiment.evaluate(params, 'test[:100]')
  assert metrics['examples'] == 100
  assert metrics['loss'] == pytest.approx(losses.mean(), rel=1e-5)
  assert metrics['accuracy'] == (logits.argmax(-1) == batch['label']).mean()


def test_a_split_that_is_not_there_is_named(experiment, params):
  with pytest.raises(UserError, match="split: got 'valid'"):
    experiment.evaluate(params, 'valid')


@pytest.mark.slow
def test_images_that_fill_the_batch_up_are_not_routed():
  """Of 100 images, the last batch of 64 holds 36 and 28 that are empty."""
  fields = dict(
    router='tokens_choice', slots_per_expert=1, k=1, capacity_factor=1.0
  )
  moe = {f'model__moe__{name}': value for name, value in fields.items()}
  moe |= dict(model__moe__blocks=(0,), model__moe__group_size=4)
  config = parse(mesh='data:1', model__depth=1, **moe)
  experiment = experiment_lib.build(config, jax.devices()[:1])
  params = experiment.init_params()
  metrics = experiment.evaluate(params, 'test[:100]')
  assert metrics['moe/wanted'] == pytest.approx(1)
  assert 0 < metrics['moe/granted'] <= 1
  other = dataclasses.replace(config.data, eval_batch_size=100)
  experiment = with_data(experiment, other)
  whole = experiment.evaluate(params, 'test[:100]')
  assert metrics['accuracy'] == whole['accuracy']
  assert metrics['moe/granted'] == pytest.approx(whole['moe/granted'])


@pytest.mark.parametrize(
  ('router', 'fields'),
  [
    ('soft', dict(slots_per_expert=2)),
    pytest.param(
      'threshold',
      dict(slots_per_expert=1, threshold=0.5),
      marks=pytest.mark.slow,
    ),
  ],
)
def test_moe_metrics_are_those_of_an_evaluation_without_padding(router, fields):
  """The last batch of 64 is the only one, of 4 images and 60 empty ones."""
  fields |= dict(router=router, blocks=(0,), group_size=2)
  moe = {f'model__moe__{name}': value for name, value in fields.items()}
  evaluated = []
  for batch_size in (64, 4):
    config = parse(
      mesh='data:1',
      model__depth=1,
      data__eval_batch_size=batch_size,
      **moe,
    )
    experiment = experiment_lib.build(config, jax.devices()[:1])
    params = experiment.init_params()
    evaluated.append(experiment.evaluate(params, 'test[:4]'))
  padded, whole = evaluated
  for name in ('moe/executed', 'moe/flops'):  # of all that ran
    assert padded.pop(name) >= whole.pop(name)
  assert padded == pytest.approx(whole, rel=1e-5)


def test_a_batch_is_on_its_way_before_the_metrics_of_the_last_are_read():
  events = []

  def dispatched():
    for i in range(3):
      events.append(f'dispatched {i}')
      yield i

  for i in means.one_late(dispatched()):
    events.append(f'read {i}')
  assert events == [
    'dispatched 0',
    'dispatched 1',
    'read 0',
    'dispatched 2',
    'read 1',
    'read 2',
  ]
