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
from softmoe.evaluation import classification

TINY = pathlib.Path(__file__).parents[1] / 'tiny.py'
parse = runpy.run_path(str(TINY))['parse']


@pytest.fixture(scope='module')
def experiment():
  config = parse(mesh='data:1', data__eval_batch_size=32, model__depth=1)
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


@pytest.mark.parametrize('batch_size', [32, 100, 128])
def test_metrics_are_means_over_the_examples_alone(
  experiment, params, batch_size
):
  """Of 100, which fill three batches of 32 and a part of a fourth."""
  (batch,) = batches.eval_batches(
    parse(data__eval_batch_size=100).data, 'test[:100]'
  )
  jax.set_mesh(experiment.mesh)
  logits, _ = nnx.merge(experiment.graphdef, params)(
    jnp.asarray(batch['image'])
  )
  logits = np.asarray(logits, np.float64)
  log_sums = np.log(np.exp(logits).sum(-1))
  losses = log_sums - logits[np.arange(100), batch['label']]

  data = parse(data__eval_batch_size=batch_size).data
  config = dataclasses.replace(experiment.config, data=data)
  experiment = dataclasses.replace(experiment, config=config)
  metrics = classification.make_evaluator(experiment, 'test[:100]')(params)
  assert metrics['examples'] == 100
  assert metrics['loss'] == pytest.approx(losses.mean(), rel=1e-5)
  assert metrics['accuracy'] == (logits.argmax(-1) == batch['label']).mean()


def test_a_split_that_is_not_there_is_named(experiment, params):
  with pytest.raises(UserError, match="split: got 'valid'"):
    classification.make_evaluator(experiment, 'valid')(params)


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
  metrics = classification.make_evaluator(experiment, 'test[:100]')(params)
  assert metrics['moe/wanted'] == pytest.approx(1)
  assert 0 < metrics['moe/granted'] <= 1
  other = dataclasses.replace(config.data, eval_batch_size=100)
  config = dataclasses.replace(config, data=other)
  experiment = dataclasses.replace(experiment, config=config)
  whole = classification.make_evaluator(experiment, 'test[:100]')(params)
  assert metrics['accuracy'] == whole['accuracy']
  assert metrics['moe/granted'] == pytest.approx(whole['moe/granted'])


@pytest.mark.parametrize(
  ('router', 'fields'),
  [
    ('soft', dict(slots_per_expert=2)),
    ('threshold', dict(slots_per_expert=1, threshold=0.5)),
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
    evaluate = classification.make_evaluator(experiment, 'test[:4]')
    evaluated.append(evaluate(experiment.init_params()))
  padded, whole = evaluated
  for name in ('moe/executed', 'moe/flops'):  # of all that ran
    assert padded.pop(name) >= whole.pop(name)
  assert padded == pytest.approx(whole, rel=1e-5)
