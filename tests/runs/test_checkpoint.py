"""Checkpoints: what is kept, other meshes, other models."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from softmoe.config import CheckpointConfig, OptimizerConfig
from softmoe.errors import UserError
from softmoe.optim import optimizer
from softmoe.runs import checkpoint

P = jax.P
KEEP_ALL = CheckpointConfig(every=1, keep_last=100)


def make_mesh(*shape):
  devices = jax.devices()[: np.prod(shape)]
  return jax.make_mesh(shape, ('data', 'expert'), devices=devices)


def make_state(mesh, classes=4):
  """Returns the state after one AdamW step: all of its values differ."""
  rng = np.random.default_rng(0)
  put = lambda spec, *shape: jax.device_put(
    rng.normal(size=shape).astype('f'), jax.NamedSharding(mesh, spec)
  )
  params = {
    'blocks': {
      0: {'kernel': put(P(), 8, 16)},
      1: {'experts': {'kernel': put(P('expert'), 8, 16, 4)}},
    },
    'head': {'kernel': put(P(), 16, classes), 'scale': put(P())},
  }
  with jax.set_mesh(mesh):
    config = OptimizerConfig(clip_norm=1.0)
    tx = optimizer.make_optimizer(config, lambda step: 0.1, params)
    updates, opt_state = jax.jit(tx.update)(params, tx.init(params), params)
    params = optax.apply_updates(params, updates)
    return {'params': params, 'opt_state': opt_state, 'step': jnp.int32(1)}


def abstract(state, mesh):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=jax.NamedSharding(mesh, x.sharding.spec)
    ),
    state,
  )


def assert_same(actual, expected, mesh):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    assert a.dtype == b.dtype
    assert a.sharding == jax.NamedSharding(mesh, b.sharding.spec)
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('shape', [(2, 4), (4, 2), (1, 1)])
def test_restore_onto_another_mesh(tmp_path, shape, caplog):
  state = make_state(make_mesh(2, 4))
  mu = optax.tree.get(state['opt_state'], 'mu')
  assert mu['blocks'][1]['experts']['kernel'].sharding.spec[0] == 'expert'
  with checkpoint.Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
    checkpoints.save(1, state)
  mesh = make_mesh(*shape)
  with checkpoint.Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
    restored = checkpoints.restore(abstract(state, mesh))
  assert_same(restored, state, mesh)
  assert not [r for r in caplog.records if r.levelname != 'INFO']


def test_restore_of_parameters_alone(tmp_path):
  mesh = make_mesh(1, 1)
  state = make_state(mesh)
  average = jax.tree.map(lambda p: 2 * p, state['params'])
  wanted = abstract(state['params'], make_mesh(2, 4))
  with checkpoint.Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
    checkpoints.save(1, state | {'ema': average})
    params = checkpoints.restore_params(wanted)
    ema = checkpoints.restore_params(wanted, step=1, key='ema')
  assert_same(params, state['params'], make_mesh(2, 4))
  assert_same(ema, average, make_mesh(2, 4))


def test_state_may_be_a_dataclass(tmp_path):
  @jax.tree_util.register_dataclass
  @dataclasses.dataclass
  class State:
    params: dict
    step: jax.Array

  mesh = make_mesh(2, 4)
  params = make_state(mesh)['params']
  state = jax.device_put(jnp.int32(3), jax.NamedSharding(mesh, P()))
  state = State(params, state)
  with checkpoint.Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
    checkpoints.save(3, state)
    assert_same(checkpoints.restore(abstract(state, mesh)), state, mesh)
    restored = checkpoints.restore_params(abstract(params, mesh))
    assert_same(restored, params, mesh)


def test_state_may_be_donated_while_it_is_saved(tmp_path):
  x = jnp.arange(1e6)
  grow = jax.jit(lambda x: x + 1, donate_argnums=0)
  with checkpoint.Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
    for step in range(3):
      checkpoints.save(step, {'params': x})
      for _ in range(5):
        x = grow(x)
    wanted = {
      'params': jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    }
    for step in range(3):
      restored = checkpoints.restore(wanted, step)
      np.testing.assert_array_equal(
        restored['params'][:2], [5 * step, 5 * step + 1]
      )
      np.testing.assert_array_equal(restored['params'][-1], 1e6 - 1 + 5 * step)


def run(directory, config, accuracies, **names):
  """Saves small states at steps 10, 20, ... and returns which remain."""
  name = names.get('name', 'accuracy')
  with checkpoint.Checkpoints(directory, config) as checkpoints:
    for i, accuracy in enumerate(accuracies, start=1):
      metrics = None if accuracy is None else {name: jnp.float32(accuracy)}
      checkpoints.save(10 * i, {'params': jnp.full(2, i)}, metrics)
    checkpoints.wait()
    assert sorted(int(p.name) for p in directory.iterdir()) == (
      checkpoints.steps()
    )
  with checkpoint.Checkpoints(directory, config) as checkpoints:
    return checkpoints.steps(), checkpoints.latest(), checkpoints.best()


def test_keeps_the_last(tmp_path):
  config = CheckpointConfig(every=10, keep_last=2, keep_best=0)
  assert run(tmp_path, config, [None] * 5) == ([40, 50], 50, None)


def test_keeps_every_so_many_steps(tmp_path):
  config = CheckpointConfig(every=10, keep_last=1, keep_every=20)
  assert run(tmp_path, config, [None] * 5)[0] == [20, 40, 50]


def test_keeps_the_best(tmp_path):
  """Those that were not evaluated, or came out as NaN, are not the best."""
  config = CheckpointConfig(every=10, keep_last=1, keep_best=2)
  accuracies = [0.5, 0.9, None, 0.8, float('nan'), 0.1, None]
  assert run(tmp_path, config, accuracies) == ([20, 40, 70], 70, 20)


def test_the_lowest_loss_is_best(tmp_path):
  config = CheckpointConfig(every=10, keep_last=1, best_metric='eval/loss')
  losses = [3.0, 1.0, 2.0]
  found = run(tmp_path, config, losses, name='eval/loss')
  assert found == ([20, 30], 30, 20)


def test_later_of_equals_is_best(tmp_path):
  config = CheckpointConfig(every=10, keep_last=1)
  assert run(tmp_path, config, [0.5, 0.5, 0.4]) == ([20, 30], 30, 20)


@pytest.mark.parametrize('gone', [True, False])
def test_a_checkpoint_that_cannot_be_deleted_fails_no_save(tmp_path, gone):
  """One that somebody deleted by hand, or another deletion was stopped."""
  config = CheckpointConfig(every=10, keep_last=1, keep_best=0)
  with checkpoint.Checkpoints(tmp_path, config) as checkpoints:
    checkpoints.save(10, {'params': jnp.ones(2)})
    checkpoints.wait()
    if gone:
      shutil.rmtree(tmp_path / '10')
    else:
      (tmp_path / '.deleting-10' / 'state').mkdir(parents=True)
    checkpoints.save(20, {'params': jnp.ones(2)})
    checkpoints.wait()
    assert checkpoints.steps() == [20]
  with checkpoint.Checkpoints(tmp_path, config) as checkpoints:
    checkpoints.save(30, {'params': jnp.ones(2)})
  assert (tmp_path / '30').exists() and not (tmp_path / '10').exists()


def test_saves_when_due_or_forced_and_never_twice(tmp_path):
  state = {'params': jnp.ones(2)}
  config = CheckpointConfig(every=10, keep_last=100)
  with checkpoint.Checkpoints(tmp_path, config) as checkpoints:
    assert checkpoints.latest() is None and checkpoints.best() is None
    assert not checkpoints.save(5, state)
    assert checkpoints.save(10, state)
    assert not checkpoints.save(10, state, force=True)
    assert checkpoints.save(15, state, force=True)
    assert checkpoints.steps() == [10, 15]
  config = CheckpointConfig(every=0)
  with checkpoint.Checkpoints(tmp_path, config) as checkpoints:
    assert not checkpoints.save(15, state, force=True)
    assert not checkpoints.save(20, state)
    assert checkpoints.save(20, state, force=True)


def describe(directory):
  return sorted(
    (str(p), p.stat().st_mtime_ns) for p in directory.rglob('*') if p.is_file()
  )


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (
      lambda s: make_state(make_mesh(1, 1), classes=5),
      ['opt_state/1/mu/head/kernel', 'float32[16,4]', 'float32[16,5]'],
    ),
    (
      lambda s: s | {'params': {**s['params'], 'extra': jnp.ones(3)}},
      ['params/extra', 'nothing', 'float32[3]'],
    ),
    (
      lambda s: s | {'params': {'head': s['params']['head']}},
      ['params/blocks/0/kernel', 'nothing', 'float32[8,16]'],
    ),
    (
      lambda s: s | {'step': jnp.float32(0)},
      ['step', 'int32[]', 'float32[]'],
    ),
  ],
)
def test_checkpoint_of_another_model(tmp_path, change, words):
  mesh = make_mesh(1, 1)
  state = make_state(mesh)
  with checkpoint.Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
    checkpoints.save(7, state)
    checkpoints.wait()
    before = describe(tmp_path)
    wanted = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      change(state),
    )
    with pytest.raises(UserError) as error:
      checkpoints.restore(wanted)
  for word in [*words, str(tmp_path / '7')]:
    assert word in str(error.value)
  assert '\n' not in str(error.value)
  assert describe(tmp_path) == before


def test_parameters_of_another_model(tmp_path):
  state = make_state(make_mesh(1, 1))
  other = make_state(make_mesh(1, 1), classes=9)['params']
  with checkpoint.Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
    checkpoints.save(7, state)
    with pytest.raises(UserError, match=r'float32\[16,4\].*float32\[16,9\]'):
      checkpoints.restore_params(abstract(other, make_mesh(1, 1)))
    with pytest.raises(UserError, match='nothing at ema/'):
      checkpoints.restore_params(
        abstract(state['params'], make_mesh(1, 1)), key='ema'
      )


def test_step_that_does_not_exist(tmp_path):
  with checkpoint.Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
    with pytest.raises(UserError, match='no checkpoint'):
      checkpoints.restore({})
    for step in (3, 7):
      checkpoints.save(step, {'params': jnp.ones(2)})
    with pytest.raises(UserError, match=r'step: got 5; one of \[3, 7\]'):
      checkpoints.restore({}, step=5)
