"""Every config file with every argument builds, and trains when shrunk."""

import dataclasses
import pathlib
import re
import runpy

import jax
import numpy as np
import pytest

from softmoe import experiment as experiment_lib
from softmoe import sharding
from softmoe.costs import flops
from softmoe.data import prefetch
from softmoe.data.images import sources, transforms
from softmoe.errors import UserError
from softmoe.runs import state as state_lib
from softmoe.training import step as step_lib

FILES = sorted(pathlib.Path('configs').glob('*.py'))
MODULES = {path.stem: runpy.run_path(str(path)) for path in FILES}
ALL = [(name, a) for name, m in MODULES.items() for a in m['ARGUMENTS']]


PAPERS = {
  'classification': 'https://arxiv.org/abs/2308.00951',
  'contrastive': 'https://arxiv.org/abs/2308.00951',
  'language': 'https://arxiv.org/abs/2403.18926',
  'translation': 'https://arxiv.org/abs/2403.18926',
}


def load(name, argument):
  return experiment_lib.parse(MODULES[name]['get_config'](argument))


def shrink(config):
  """Returns a config with every feature of `config`, and none of its size."""
  schedule = config.optimizer.schedule
  schedule = dataclasses.replace(
    schedule, warmup=min(1, schedule.warmup), cooldown=0
  )
  optimizer = dataclasses.replace(config.optimizer, schedule=schedule)
  config = dataclasses.replace(
    config, name='', steps=2, eval_every=0, optimizer=optimizer
  )
  return SHRINK[config.task](config)


def shrink_model(config, **fields):
  model = config.model
  moe = shrink_moe(model.moe) if model.moe.blocks else model.moe
  fields |= dict(width=8, depth=2, mlp_dim=8, num_heads=2, moe=moe)
  return dataclasses.replace(model, **fields)


def shrink_text(config, **fields):
  """Returns the config on files of this repository, as bytes."""
  data = dict(
    train_split='train',
    eval_split='train',
    tokenizer='bytes',
    batch_size=4,
    eval_batch_size=4,
    threads=0,
  )
  data = dataclasses.replace(config.data, **data, **fields)
  model = shrink_model(config, vocab_size=257)
  return dataclasses.replace(config, model=model, data=data)


def shrink_language(config):
  return shrink_text(config, source='text:docs/*.md', length=16)


def shrink_translation(config):
  source = 'parallel:tests/data/text/pairs.tsv'
  config = shrink_text(config, source=source, buckets=(16,))
  optimizer = dataclasses.replace(config.optimizer, accumulate=1)
  return dataclasses.replace(config, optimizer=optimizer)


def shrink_images(config):
  data, channels = config.data, config.data.channels
  return dataclasses.replace(
    config,
    model=shrink_model(config, patch_size=(4, 4)),
    data=dataclasses.replace(
      data,
      source=f'fake:10x9x{channels},classes=3',
      train_split='train',
      eval_split='test[:2]',
      num_classes=3,
      image_size=(8, 8),
      batch_size=4,
      eval_batch_size=4,
      threads=0,
      eval=dataclasses.replace(data.eval, resize=10 if data.eval.resize else 0),
    ),
  )


def shrink_contrastive(config):
  data, channels = config.data, config.data.channels
  text = dict(width=8, depth=2, mlp_dim=8, num_heads=2, vocab_size=257)
  return dataclasses.replace(
    config,
    model=shrink_model(config, patch_size=(4, 4)),
    text=dataclasses.replace(config.text, **text),
    data=dataclasses.replace(
      data,
      source=f'fake:10x9x{channels},classes=5',
      captions='tests/data/captioned/captions.jsonl',
      train_split='train',
      eval_split='test[:4]',
      tokenizer='bytes',
      length=12,
      image_size=(8, 8),
      batch_size=4,
      eval_batch_size=4,
      threads=0,
    ),
  )


def shrink_moe(moe):
  at_most = lambda most, *fields: {
    field: min(most, getattr(moe, field)) for field in fields
  }
  return dataclasses.replace(
    moe,
    blocks=(1,),
    num_experts=4,
    **at_most(8, 'expert_dim', 'shared_dim'),
    **at_most(2, 'group_size', 'k', 'num_null'),
    **at_most(1.5, 'capacity_factor'),
  )


SHRINK = {
  'classification': shrink_images,
  'contrastive': shrink_contrastive,
  'language': shrink_language,
  'translation': shrink_translation,
}
# Shrunk, most sizes are one and the same.
SHRUNK = {shrink(load(*case)): ':'.join(case) for case in ALL}


@pytest.fixture(autouse=True)
def one_device():
  """Puts a mesh in force, which `build` replaces, and takes it away."""
  device = jax.devices()[:1]
  with jax.set_mesh(sharding.make_mesh('data:1', device)):
    yield device


def some(quick, cases):
  """Returns all the cases; those that are not among `quick` are slow."""
  slow = lambda case: () if ':'.join(case) in quick else pytest.mark.slow
  return [pytest.param(*case, marks=slow(case)) for case in cases]


ENDS = {
  f'{name}:{m["ARGUMENTS"][i]}' for name, m in MODULES.items() for i in (0, -1)
}


@pytest.mark.parametrize('name, argument', some(ENDS, ALL))
def test_builds(name, argument):
  config = load(name, argument)
  experiment = experiment_lib.build(config)
  assert experiment.mesh.size == 8
  assert experiment.num_params() > 10_000
  assert bool(config.model.moe.blocks) == (
    'vit' not in argument and 'dense' not in argument
  )
  assert experiment.schedule(config.optimizer.schedule.warmup) == (
    pytest.approx(config.optimizer.learning_rate, rel=1e-3)
  )
  if config.task == 'classification':
    transforms.train_transform(config.data)
    transforms.eval_transform(config.data)


@pytest.mark.slow
@pytest.mark.parametrize('config', SHRUNK, ids=SHRUNK.values())
def test_takes_two_steps_when_shrunk(one_device, config):
  experiment = experiment_lib.build(config, one_device)
  state = state_lib.init(experiment)
  step = step_lib.make_train_step(experiment)
  rows = prefetch.local_rows(experiment.mesh, config.data.batch_size)
  data = experiment.task.train_batches(rows)
  data = prefetch.to_devices(data, experiment.mesh, 1)
  start = np.log(3) if getattr(config, 'loss', '') == 'softmax' else None
  for i in range(2):
    state, metrics = step(state, next(data))
    assert np.isfinite(metrics['loss']), i
    assert metrics['gradient_norm'] > 0
    if i == 0 and start:  # and the losses that balance experts
      assert start - 1e-5 < metrics['loss'] < start + 0.1
  assert state['step'] == 2
  assert metrics['update_norm'] > 0
  batch = next(experiment.task.eval_batches(config.data.eval_split, rows))
  assert batch['mask'].sum() == (2 if config.task == 'classification' else 4)


@pytest.mark.parametrize('name', MODULES)
def test_default_argument_is_one_of_them(name):
  default = MODULES[name]['get_config']()
  all_names = [load(name, a).name for a in MODULES[name]['ARGUMENTS']]
  assert default.name in all_names
  assert len(set(all_names)) == len(all_names)


@pytest.mark.parametrize('name', MODULES)
def test_bad_argument_is_named_beside_the_valid_ones(name):
  module = MODULES[name]
  with pytest.raises(UserError) as error:
    module['get_config']('sofd')
  assert "got 'sofd'; one of" in str(error.value)
  for argument in module['ARGUMENTS']:
    assert repr(argument) in str(error.value)


@pytest.mark.parametrize('path', FILES, ids=str)
def test_docstring_says_paper_and_command(path):
  doc = MODULES[path.stem]['__doc__']
  config = experiment_lib.parse(MODULES[path.stem]['get_config']())
  assert PAPERS[config.task] in doc
  assert re.search(rf'--config={path}\S*.* --workdir=', doc)


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(n, marks=() if n == 'fashion_mnist' else pytest.mark.slow)
    for n, m in MODULES.items()
    if set(m['ARGUMENTS']) == {'vit', 'soft'}
  ],
)
def test_soft_costs_no_more_than_vit(name):
  cost = lambda argument: flops.forward(load(name, argument)).flops()
  # Equal to 1 %: as many slots as tokens leave the routing on top.
  assert 0.85 < cost('soft') / cost('vit') < 1.01


@pytest.mark.slow
def test_soft_costs_less_than_vit_on_imagenet():
  cost = lambda argument: flops.forward(load('imagenet1k', argument)).flops()
  assert 0.85 * cost('vit-s16') < cost('soft-s16') < cost('vit-s16')


def test_paper_hyper_parameters():
  config = load('jft4b', 'soft-h14')
  assert config.steps == 2_000_000
  assert load('jft4b', 'soft-l16').steps == 4_000_000
  assert config.model.moe.blocks == tuple(range(16, 32))
  assert config.model.moe.num_experts == 256
  assert config.model.moe.slots_per_expert == 1
  experiment = experiment_lib.build(config)
  rate = experiment.schedule
  assert rate(20_000) == pytest.approx(1e-3 / 2**0.5, rel=1e-4)
  assert rate(1_000_000) == pytest.approx(1e-4, rel=1e-4)
  assert rate(2_000_000) == 0


def test_data_that_the_user_must_name_is_asked_for(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  data = load('jft4b', 'vit-s16').data
  expected = "config.data.source: got 'tfds:your_data_set'; data prepared by"
  with pytest.raises(UserError, match=expected):
    sources.open_source(data.source, data.train_split)
