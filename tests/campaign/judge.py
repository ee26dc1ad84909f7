"""What a finished run computed, to the last bit, and damage done to one."""

import hashlib
import json
import shutil

from tests.campaign import folders, jobs

_TIMES = ('images_per_second', 'mfu', 'train', 'finished')


def outcome(workdir):
  """Returns all numbers of a finished run, and a hash of its last state."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  result = json.loads((workdir / 'result.json').read_text())
  rows = [*map(json.loads, lines), result]
  kept = [{k: v for k, v in r.items() if k not in _TIMES} for r in rows]
  return [*kept, _in_fork(lambda: _hash(workdir))]


def damage(workdir, count, seed):
  """Damages copies of a run's last checkpoint; returns how often it was seen.

  Returns:
    'found': refused; 'harmless': read, and every number was right;
    'undetected': read, and another number.
  """
  return _in_fork(lambda: _damage(workdir, count, seed))


def _in_fork(function):
  """Returns what a function does that uses JAX, which the campaign must not."""
  with folders.folder() as directory:
    path = directory / 'value.json'
    fork = jobs.Fork(lambda: path.write_text(json.dumps(function())))
    code, printed = fork.wait(), fork.printed()
    fork.forget()
    assert code == 0, printed
    return json.loads(path.read_text())


def _build(workdir):
  from softmoe import experiment as experiment_lib
  from softmoe.process import launch
  from softmoe.runs import workdir as workdir_lib

  launch.use_cores(jobs.DEVICES)
  return experiment_lib.build(workdir_lib.read_config(workdir))


def _hash(workdir, experiment=None):
  import jax
  import numpy as np

  from softmoe.runs import state as state_lib
  from softmoe.runs import workdir as workdir_lib
  from softmoe.weights import pretrained

  experiment = experiment or _build(workdir)
  checkpoints = workdir_lib.open_checkpoints(workdir, experiment.config)
  state = state_lib.restore_or_init(experiment, checkpoints, pretrained.start)
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(state):
    digest.update(np.asarray(leaf).tobytes())
  return digest.hexdigest()


def _damage(workdir, count, seed):
  import random

  from absl import logging

  from softmoe.errors import UserError

  logging.set_verbosity(logging.FATAL)
  chance, experiment = random.Random(seed), _build(workdir)
  right = _hash(workdir, experiment)
  found = {'found': 0, 'harmless': 0, 'undetected': 0}
  for _ in range(count):
    with folders.folder() as directory:
      copy = shutil.copytree(workdir, directory / 'run')
      _flip(copy, chance)
      try:
        same = _hash(copy, experiment) == right
        found['harmless' if same else 'undetected'] += 1
      except UserError:
        found['found'] += 1
  return found


def _flip(workdir, chance):
  """Flips one bit of one file of the last checkpoint."""
  last = max((workdir / 'checkpoints').iterdir(), key=lambda p: int(p.name))
  files = sorted(p for p in last.rglob('*') if p.is_file())
  path = chance.choice([p for p in files if p.stat().st_size])
  content = bytearray(path.read_bytes())
  content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
  path.write_bytes(content)
