"""Few-shot accuracy of a model: the same on any mesh, and as by hand."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from softmoe import experiment as experiment_lib
from softmoe.data.images import sources
from softmoe.errors import UserError
from softmoe.tasks import fewshot, ridge, shots
from tests.tasks import ragged

FEWSHOT = dict(source='digits', shots=(1, 5), seeds=2, test_split='test[:100]')


def build(tiny, mesh='data:1', devices=1, **changes):
  fields = {f'fewshot__{k}': v for k, v in FEWSHOT.items()}
  fields |= dict(model__depth=1, model__moe__blocks=(0,))
  config = tiny(mesh=mesh, **fields | changes)
  return experiment_lib.build(config, jax.devices()[:devices])


@pytest.mark.slow
def test_it_is_the_ridge_regression_of_features_that_any_mesh_sees(
  tiny, monkeypatch
):
  seen = {}  # by mesh: what the model made of pool and test images
  original = fewshot._see

  def see(features, params, images, data, mesh):
    found = original(features, params, images, data, mesh)
    assert len(found) == len(images.indices)
    seen.setdefault(mesh.size, []).append(found)
    return found

  monkeypatch.setattr(fewshot, '_see', see)
  metrics = {}
  for mesh, devices in (('data:1', 1), ('data:2,expert:4', 8)):
    experiment = build(tiny, mesh, devices)
    _, evaluate = experiment.evaluators
    metrics[devices] = evaluate(experiment.init_params(), 'any')
    assert {*metrics[devices]} <= {*experiment.task.ratings()}
  for one, eight in zip(seen[1], seen[8], strict=True):
    np.testing.assert_allclose(one, eight, rtol=1e-4, atol=1e-5)
  assert metrics[1] == pytest.approx(metrics[8])

  drawn, (pool, test) = shots.draw(experiment.config.fewshot), seen[8]
  for count in (1, 5):
    fitted = [
      ridge.fit(pool[c], drawn.pool.labels[c], 10)
      for c in drawn.ranked[:, :, :count].reshape(2, -1)
    ]
    held = pool[drawn.held_out], drawn.pool.labels[drawn.held_out]
    val = np.mean([f.accuracies(*held) for f in fitted], axis=0)
    l2 = max(l2 for l2, v in zip(ridge.L2, val, strict=True) if v == max(val))
    right = [f.classify(test, l2) == drawn.test.labels for f in fitted]
    assert metrics[8][f'fewshot/{count}shot'] == np.mean(right)
  assert metrics[8]['fewshot/5shot'] > 0.3  # more than chance, untrained


@pytest.mark.slow
def test_features_are_what_the_head_sees(tiny):
  """And each is that of its own image, batches being filled up."""
  experiment = build(tiny, data__eval_batch_size=64)
  params = experiment.init_params()
  params['head']['kernel'] = params['head']['kernel'] + jnp.eye(16, 10)
  source = sources.open_source('digits', 'test')
  images = shots.Images(source, np.arange(3, 73), np.zeros(70, int))
  features = jax.jit(
    lambda p, batch: experiment.task.features(
      nnx.merge(experiment.graphdef, p), batch
    )
  )
  found = fewshot._see(
    features, params, images, experiment.config.data, experiment.mesh
  )
  batch = {'image': jnp.stack([source[i]['image'] for i in range(3, 73)])}
  model = nnx.merge(experiment.graphdef, params)
  logits = jax.jit(experiment.task.infer)(model, batch)
  np.testing.assert_allclose(found[:, :10], logits, rtol=1e-4, atol=1e-5)


def test_it_is_off_without_a_source(tiny):
  experiment = build(tiny, fewshot__source='')
  assert len(experiment.evaluators) == 1


def test_what_cannot_be_read_shows_before_training(tiny):
  experiment = build(tiny, fewshot__test_split='valid')
  with pytest.raises(UserError, match="config.fewshot.test_split: got 'valid'"):
    _ = experiment.evaluators


def test_a_task_without_features_is_named():
  task = ragged.Regression(ragged.Config())
  with pytest.raises(UserError, match='config.task: got .*Regression'):
    task.features(None, {})
