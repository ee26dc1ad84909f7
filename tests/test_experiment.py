"""The one door: which mesh an experiment gets, and which task."""

import jax
import pytest

from softmoe import config as config_lib
from softmoe import experiment as experiment_lib
from softmoe.errors import UserError
from softmoe.tasks import classification, registry


@pytest.mark.parametrize(
  ('num_experts', 'count', 'expert'),
  [(8, 8, 8), (12, 8, 4), (4, 8, 4), (3, 8, 1), (6, 2, 2)],
)
def test_an_unset_mesh_shares_the_experts(tiny, num_experts, count, expert):
  config = tiny(mesh='', model__moe__num_experts=num_experts)
  experiment = experiment_lib.build(config, jax.devices()[:count])
  sizes = {'data': count // expert, 'fsdp': 1, 'expert': expert}
  assert dict(experiment.mesh.shape) == sizes
  experts = experiment.abstract_params['blocks'][1]['mlp']['experts']
  kernel = experts['stacked']['up']['kernel']
  assert kernel.sharding.spec[0] == 'expert'


def test_an_unset_mesh_of_a_dense_model_splits_the_batch(tiny):
  experiment = experiment_lib.build(tiny('vit', mesh=''))
  assert dict(experiment.mesh.shape) == {'data': 8, 'fsdp': 1, 'expert': 1}


def test_a_named_mesh_that_does_not_divide_the_experts_is_named(tiny):
  config = tiny(mesh='expert:8', model__moe__num_experts=12)
  with pytest.raises(UserError, match='config.mesh: got .*divides the 12'):
    experiment_lib.build(config)


def test_a_config_of_before_there_were_tasks_still_loads():
  values = config_lib.to_dict(classification.Config(mixup=0.5))
  for field in ('task',):
    del values[field]
  for field in ('router_options',):
    del values['model']['moe'][field]
  for field in ('attention', 'positions'):
    del values['model'][field]
  assert experiment_lib.parse(values) == classification.Config(mixup=0.5)


def test_an_evaluation_needs_no_batch_of_training(tiny):
  config = tiny(mesh='', data__batch_size=12, data__eval_batch_size=16)
  with pytest.raises(UserError, match='config.data.batch_size: got 12'):
    experiment_lib.build(config)
  assert experiment_lib.build(config, training=False).mesh.size == 8


def test_an_evaluation_fills_the_devices_where_that_changes_nothing(
  tiny, monkeypatch
):
  moe = dict(model__moe__router='mixture_of_tokens', model__moe__group_size=2)
  data = dict(data__batch_size=24, data__eval_batch_size=20)
  config = tiny(mesh='data:-1', **data, **moe)
  with pytest.raises(UserError, match='eval_batch_size: got 20; .* of 12 '):
    experiment_lib.build(config, jax.devices()[:6])
  for additive, size in ((True, 24), (False, 20)):
    monkeypatch.setattr(classification.Classification, 'additive', additive)
    devices = jax.devices()[:6]
    experiment = experiment_lib.build(config, devices, training=False)
    assert experiment.config.data.eval_batch_size == size
    assert experiment.task.config == experiment.config


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('clasification', "config.task: got 'clasification'; one of"),
    ('nowhere:Task', "'module:Name' that can be imported"),
    ('tests.tasks.ragged:Nothing', "'module:Name' that can be imported"),
    ('tests.tasks.ragged:Model', 'a class that extends `Task`'),
  ],
)
def test_a_task_that_is_none_is_named(name, message):
  with pytest.raises(UserError, match=message):
    registry.find(name)
