"""Checkpoints of saves that fail or are killed, and damaged ones."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softmoe.config import CheckpointConfig
from softmoe.errors import UserError
from softmoe.runs import checkpoint, checksums, disk

KEEP_ALL = CheckpointConfig(every=1, keep_last=100)


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
    damage(tmp_path / '40')
    checkpoints.set_damaged_aside()
  names = {'20', '40.damaged', '40.damaged2'}
  assert {p.name for p in tmp_path.iterdir()} == names


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


def test_a_large_state_is_several_files_for_the_threads(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint, '_FILE_SIZE', 2**16)
  values = np.random.default_rng(0).normal(size=(8, 2**14)).astype('f')
  with checkpoint.Checkpoints(tmp_path, KEEP_ALL) as checkpoints:
    checkpoints.save(1, {'params': list(map(jnp.asarray, values))})
  names = checksums.names(tmp_path / '1')
  assert sum('ocdbt.process_0/d/' in name for name in names) >= 4
