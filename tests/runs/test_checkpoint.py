"""Checkpoints: what is kept, other meshes, other models, kills."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from softmoe.config import CheckpointConfig, OptimizerConfig
from softmoe.errors import UserError
from softmoe.optim import optimizer
from softmoe.runs import checkpoint, disk

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


def test_a_failed_save_clears_what_it_made_where_the_directory_was_deleted(
  tmp_path,
):
  directory = tmp_path / 'run' / 'checkpoints'
  left = directory / '.saving-1-x.orbax-checkpoint-tmp'
  left.mkdir(parents=True)
  checkpoints = checkpoint.Checkpoints(directory, KEEP_ALL)
  checkpoints._clear(directory / '.saving-1-x')
  assert left.exists()  # only the first process knows whose directory it is
  checkpoints._inode = directory.stat().st_ino
  checkpoints._clear(directory / '.saving-1-x')
  assert left.exists()
  checkpoints._inode += 1  # another directory than the one it saved into
  (directory / '1').mkdir()
  checkpoints._clear(directory / '.saving-1-x')
  assert not left.exists() and (directory / '1').exists()
  (directory / '1').rmdir()
  checkpoints._clear(directory / '.saving-1-x')
  assert not directory.parent.exists()


KILLED = """
import os, sys
import jax.numpy as jnp, numpy as np
from softmoe.config import CheckpointConfig
from softmoe.runs import checkpoint
checkpoints = checkpoint.Checkpoints(sys.argv[1], CheckpointConfig(every=10))
checkpoints.save(10, {'params': jnp.ones(2)})
checkpoints.wait()
large = np.random.default_rng(0).bytes(2**26)  # takes a while to write
checkpoints.save(20, {'params': jnp.frombuffer(large, 'uint8')})
while len(os.listdir(sys.argv[1])) < 2:
  pass  # until it has begun to write
os._exit(9)
"""


def test_killed_save_is_no_checkpoint(tmp_path):
  command = [sys.executable, '-c', KILLED, str(tmp_path)]
  env = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
  assert subprocess.run(command, env=env).returncode == 9
  assert len(list(tmp_path.iterdir())) == 2  # the torn save is there
  config = CheckpointConfig(every=10)
  with checkpoint.Checkpoints(tmp_path, config) as checkpoints:
    assert checkpoints.steps() == [10] and checkpoints.latest() == 10
    checkpoints.save(20, {'params': jnp.full(2, 2.0)})
  with checkpoint.Checkpoints(tmp_path, config) as checkpoints:
    assert checkpoints.steps() == [10, 20]
    x = jnp.ones(2)
    wanted = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    np.testing.assert_array_equal(checkpoints.restore_params(wanted), 2.0)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['10', '20']


def damage(path):
  """Flips a bit of the values that a checkpoint holds."""
  (file,) = path.glob('state/ocdbt.process_0/d/*')
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)


def test_a_damaged_checkpoint_is_in_nobodys_way_but_its_readers(tmp_path):
  x = jnp.arange(1e4)
  wanted = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
  with checkpoint.Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
    for step in (20, 40):
      checkpoints.save(step, {'params': step * x}, {'accuracy': step})
  damage(tmp_path / '40')
  (tmp_path / '40' / 'metrics' / 'metrics').write_text('{"accu')
  with checkpoint.Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
    assert checkpoints.latest() == 40
    np.testing.assert_array_equal(
      checkpoints.restore_params(wanted, 20), 20 * x
    )
    with pytest.raises(UserError, match='d/.* not as written.*before it is 20'):
      checkpoints.restore_params(wanted)
    with pytest.raises(UserError, match='40.*metrics: not as written'):
      checkpoints.best()
    checkpoints.set_damaged_aside()
    assert checkpoints.latest() == 20 == checkpoints.best()
    checkpoints.save(40, {'params': 40 * x})
    np.testing.assert_array_equal(checkpoints.restore_params(wanted), 40 * x)
  assert {p.name for p in tmp_path.iterdir()} == {'20', '40', '40.damaged'}


def test_each_process_vouches_for_what_it_wrote():
  assert checkpoint._writer('state/ocdbt.process_12/d/1f') == 12
  assert checkpoint._writer('state/array_metadatas/process_3') == 3
  for name in ('state/_METADATA', 'state/d/1f', 'metrics/metrics'):
    assert checkpoint._writer(name) == 0


def test_a_save_has_its_name_once_all_of_it_is_on_disk(tmp_path, monkeypatch):
  """Files, directories and the list of checksums; the name itself last."""
  calls, sync, rename = [], disk.sync, disk.rename
  name = lambda path: path.relative_to(tmp_path).as_posix()
  monkeypatch.setattr(
    disk, 'sync', lambda path: (calls.append(name(path)), sync(path))
  )
  monkeypatch.setattr(
    disk,
    'rename',
    lambda old, new: (calls.append((name(old), name(new))), rename(old, new)),
  )
  with checkpoint.Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
    checkpoints.save(1, {'params': jnp.ones(2)})
  new = calls[-2][0]
  assert new.startswith('.saving-1-')
  assert calls[-2:] == [(new, '1'), '.']
  there = {p.relative_to(tmp_path / '1') for p in (tmp_path / '1').rglob('*')}
  synced = {c.removeprefix(f'{new}/') for c in calls if isinstance(c, str)}
  assert (f'{new}/.checksums.json', f'{new}/checksums.json') in calls
  assert {p.as_posix() for p in there} - {'checksums.json'} <= synced


FULL = """
import resource, sys
import jax.numpy as jnp, numpy as np
from absl import logging
from softmoe.config import CheckpointConfig
from softmoe.process import launch
from softmoe.runs import checkpoint

def main():
  logging.set_verbosity(logging.WARNING)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
  config = CheckpointConfig(every=10)
  with checkpoint.Checkpoints(sys.argv[1], config) as checkpoints:
    checkpoints.save(10, {'params': jnp.ones(2)})
    large = np.random.default_rng(0).bytes(2**22)
    checkpoints.save(20, {'params': jnp.frombuffer(large, 'uint8')})

launch.guard(main)
"""


def test_a_failed_save_is_one_line_and_the_end(tmp_path):
  command = [sys.executable, '-c', FULL, str(tmp_path)]
  env = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
  done = subprocess.run(
    command, env=env, capture_output=True, text=True, timeout=120
  )
  assert done.returncode == 1
  (line,) = done.stderr.splitlines()
  assert line.startswith(
    f'error: checkpoint {tmp_path}/20 could not be written'
  )
  assert 'File too large' in line
  assert checkpoint.Checkpoints(tmp_path, KEEP_ALL).steps() == [10]
