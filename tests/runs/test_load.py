"""A trained model, from the directory of its run alone."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

import softmoe
from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe.errors import UserError
from softmoe.runs import load, state
from softmoe.runs import workdir as workdir_lib


@nnx.jit
def logits(model, images):
  return model(images)[0]


@pytest.mark.parametrize('step', ['latest', 8, '6'])
def test_the_model_is_that_of_the_checkpoint(finished, one_device, step):
  workdir, config, _ = finished
  model = softmoe.load(workdir, step)
  experiment = experiment_lib.build(config)
  with workdir_lib.open_checkpoints(workdir, config) as checkpoints:
    number = 8 if step == 'latest' else int(step)
    params = state.restore_evaluated(experiment, checkpoints, number)
  expected = nnx.merge(experiment.graphdef, params)
  images = jnp.ones((2, 8, 8, 1))
  np.testing.assert_array_equal(logits(model, images), logits(expected, images))


@pytest.mark.slow
def test_on_another_mesh_it_says_the_same(finished):
  images = jax.random.normal(jax.random.key(0), (8, 8, 8, 1))
  found = []
  for mesh in ('data:8', 'data:2,expert:4'):
    model = softmoe.load(finished[0], mesh=mesh)
    found.append(np.asarray(logits(model, images)))
  np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('step', ['lates', 3, '-1'])
def test_a_checkpoint_that_is_not_there_is_named(finished, step):
  with pytest.raises(UserError, match='^--step: got'):
    load.load(finished[0], step)


@pytest.mark.parametrize('name', ['pallas', 'cudnn'])
def test_attention_of_another_platform_is_plain(finished, tmp_path, name):
  workdir, config, _ = finished
  model = dataclasses.replace(config.model, attention=name)
  values = config_lib.to_dict(dataclasses.replace(config, model=model))
  workdir_lib.write_json(tmp_path / 'config.json', values)
  (tmp_path / 'checkpoints').symlink_to(workdir / 'checkpoints')
  with workdir_lib.find_checkpoint(tmp_path, 'latest') as found:
    assert found.config == config


def test_a_directory_without_a_run_is_named(tmp_path):
  with pytest.raises(UserError, match='--workdir'):
    softmoe.load(tmp_path)
