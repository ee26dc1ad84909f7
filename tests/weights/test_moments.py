"""An optimizer that goes on with what that of another run remembers."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from softmoe import config as config_lib
from softmoe.errors import UserError
from softmoe.optim import memory
from softmoe.runs import state as state_lib
from softmoe.runs import workdir as workdir_lib
from tests.weights.starting import build, started

STEP = 5
RATE = 1e-2
# No decay and no clipping: an update is Adam's alone.
PLAIN = dict(
  optimizer__learning_rate=RATE,
  optimizer__schedule__name='constant',
  optimizer__weight_decay=(),
  optimizer__clip_norm=0.0,
  mesh='data:1',
)
EXPERTS = dict(
  upcycle__enabled=True,
  model__moe__router='tokens_choice',
  model__moe__k=2,
  model__moe__normalize=True,
  model__moe__blocks=(1,),
  model__moe__num_experts=4,
  model__moe__expert_dim=16,
)


@pytest.fixture(scope='module')
def saved(tiny, tmp_path_factory):
  """Returns a function that leaves a run whose whole state is random.

  It returns the workdir and the moments, without `scan`.
  """

  @functools.cache
  def save(model='vit', **changes):
    experiment = build(tiny(model, **PLAIN | changes))
    config, rng = experiment.config, np.random.default_rng(0)

    def draw(x):
      value = np.abs(rng.normal(0, 0.3, x.shape)).astype(x.dtype)
      return jax.device_put(value, x.sharding)

    state = jax.tree.map(draw, state_lib.abstract(experiment))
    workdir = tmp_path_factory.mktemp('source')
    workdir_lib.write_json(workdir / 'config.json', config_lib.to_dict(config))
    with workdir_lib.open_checkpoints(workdir, config) as checkpoints:
      checkpoints.save(STEP, state, {'accuracy': 0.5}, force=True)
    trees = memory.moments(config.optimizer, state['opt_state'])
    return workdir, exchanged(experiment, trees)

  return save


def exchanged(experiment, trees):
  exchange = experiment.task.exchange
  return {k: jax.tree.map(np.asarray, exchange(t)) for k, t in trees.items()}


def moments(experiment, state):
  optimizer = experiment.config.optimizer
  return exchanged(experiment, memory.moments(optimizer, state['opt_state']))


def assert_same(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
  'name', ['adam', pytest.param('sgd', marks=pytest.mark.slow)]
)
def test_they_are_those_of_the_run_on_another_mesh(saved, tiny, name, tmp_path):
  workdir, trees = saved(optimizer__name=name)
  assert all(x.any() for x in jax.tree.leaves(trees))
  here = dict(mesh='data:2,fsdp:2', model__scan=True, optimizer__name=name)
  fields = PLAIN | here | dict(init=str(workdir), init_moments=True)
  experiment, state = started(tiny('vit', **fields), tmp_path)
  assert_same(moments(experiment, state), trees)
  assert state_lib.doubts(state, 0) == []
  abstract = state_lib.abstract(experiment)
  assert jax.tree.all(
    jax.tree.map(lambda x, y: x.sharding == y.sharding, state, abstract)
  )


def test_adam_needs_no_correction_and_the_rate_starts_anew(
  saved, tiny, tmp_path
):
  workdir, trees = saved()
  fields = PLAIN | dict(init=str(workdir), init_moments=True)
  experiment, state = started(tiny('vit', **fields), tmp_path)
  gradient = jax.tree.map(lambda w: jnp.full_like(w, 0.1), state['params'])
  updates, _ = jax.jit(experiment.optimizer.update)(
    gradient, state['opt_state'], state['params']
  )
  options = experiment.config.optimizer

  def expected(mu, nu):
    mean = options.b1 * mu + (1 - options.b1) * 0.1
    square = options.b2 * nu + (1 - options.b2) * 0.1**2
    return -RATE * mean / (np.sqrt(square) + 1e-8)

  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5),
    jax.tree.map(np.asarray, experiment.task.exchange(updates)),
    jax.tree.map(expected, trees['mu'], trees['nu']),
  )


def test_experts_get_those_of_the_mlp_and_routers_none(saved, tiny, tmp_path):
  """Of four experts that are halves, each pair has what the MLP has."""
  workdir, trees = saved()
  fields = PLAIN | EXPERTS | dict(init=str(workdir), init_moments=True)
  fields |= dict(upcycle__scale=3.0, upcycle__noise=0.5)
  experiment, state = started(tiny('vit', **fields), tmp_path)
  for name, found in moments(experiment, state).items():
    moe = found['blocks'][1].pop('mlp')
    mlp = trees[name]['blocks'][1]['mlp']
    found['blocks'][1]['mlp'] = mlp
    assert_same(found, trees[name])
    assert not any(x.any() for x in jax.tree.leaves(moe['router']))
    experts = moe['experts']['stacked']
    for pair in (slice(0, 2), slice(2, 4)):
      up = np.concatenate(list(experts['up']['kernel'][pair]), axis=-1)
      down = np.concatenate(list(experts['down']['kernel'][pair]), axis=0)
      np.testing.assert_array_equal(up, mlp['up']['kernel'])
      np.testing.assert_array_equal(down, mlp['down']['kernel'])


def test_resized_squares_stay_between_those_saved(saved, tiny, tmp_path):
  # And so none is below 0.
  workdir, trees = saved()
  fields = PLAIN | dict(init=str(workdir), init_moments=True)
  fields |= dict(data__source='fake:32x32x1', data__image_size=(32, 32))
  experiment, state = started(tiny('vit', **fields), tmp_path)
  position = moments(experiment, state)['nu']['patches']['position']
  before = trees['nu']['patches']['position']
  assert position.shape != before.shape
  assert before.min() <= position.min() < position.max() <= before.max()


@pytest.mark.slow
def test_a_head_that_starts_anew_has_none(saved, tiny, tmp_path):
  workdir, trees = saved()
  fields = PLAIN | dict(init=str(workdir), init_moments=True, init_head='reset')
  experiment, state = started(tiny('vit', **fields), tmp_path)
  for name, found in moments(experiment, state).items():
    assert not any(x.any() for x in jax.tree.leaves(found.pop('head')))
    expected = {k: v for k, v in trees[name].items() if k != 'head'}
    assert_same(found, expected)


def test_without_the_field_there_are_none(saved, tiny, tmp_path):
  fields = PLAIN | dict(init=str(saved()[0]))
  experiment, state = started(tiny('vit', **fields), tmp_path)
  found = moments(experiment, state)
  assert not any(x.any() for x in jax.tree.leaves(found))


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (dict(init=''), 'config.init_moments: got True; False: it needs config.in'),
    (dict(optimizer__name='adafactor'), r"init_moments.*one of \['adam', 'ada"),
    (dict(optimizer__name='sgd'), "init_moments.*was trained by 'adamw'"),
    pytest.param(
      dict(model__width=8), 'config.init: got', marks=pytest.mark.slow
    ),
  ],
)
def test_what_cannot_be_is_one_line(saved, tiny, changes, words, tmp_path):
  fields = PLAIN | dict(init=str(saved()[0]), init_moments=True) | changes
  with pytest.raises(UserError, match=words):
    started(tiny('vit', **fields), tmp_path)


@pytest.mark.slow
def test_a_file_has_none(saved, tiny, tmp_path):
  pytest.importorskip('safetensors')
  from softmoe.weights import __main__ as weights_command

  weights_command.main(
    ['export', str(saved()[0]), str(tmp_path), '--to=softmoe']
  )
  (file,) = tmp_path.glob('*.safetensors')
  fields = PLAIN | dict(init=str(file), init_moments=True)
  with pytest.raises(UserError, match='init_moments: got True; False: no run'):
    started(tiny('vit', **fields), tmp_path)
