"""A run that was stopped and goes on equals one that was not, bit for bit."""

import contextlib
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from softmoe import experiment as experiment_lib
from softmoe.errors import Stopped
from softmoe.runs import checkpoint
from softmoe.runs import state as state_lib
from softmoe.tasks import means
from softmoe.training import loop
from softmoe.training import step as step_lib
from softmoe.weights import pretrained

TIMING = ('images_per_second', 'mfu')


def metrics(workdir):
  rows = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [{k: v for k, v in r.items() if k not in TIMING} for r in rows]


def saved(workdir, config):
  """Returns the steps that are kept, the best, and the last state's bytes."""
  experiment = experiment_lib.build(config)
  with checkpoint.Checkpoints(
    workdir / 'checkpoints', config.checkpoint
  ) as checkpoints:
    state = state_lib.restore_or_init(experiment, checkpoints, pretrained.start)
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
    return checkpoints.steps(), checkpoints.best(), leaves


@contextlib.contextmanager
def signalled(module, name, at, method=False):
  """Sends SIGTERM to this process at the `at`-th call of a function.

  The function is `module.name` if `method`, else the one that it returns.
  """
  calls = 0

  def count(function):
    def counted(*args, **kwargs):
      nonlocal calls
      calls += 1
      if calls == at:
        os.kill(os.getpid(), signal.SIGTERM)
      return function(*args, **kwargs)

    counted.trace = getattr(function, 'trace', None)
    return counted

  original = getattr(module, name)
  made = lambda *args: count(original(*args))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(module, name, count(original) if method else made)
    yield


@pytest.fixture
def uninterrupted(finished, one_device):
  """Returns its workdir, its config, and what it saved."""
  workdir, config, _ = finished
  return workdir, config, saved(workdir, config)


@pytest.mark.parametrize(
  ('where', 'at', 'step'),
  [
    pytest.param('step', 2, 2, marks=pytest.mark.slow),  # saved anyway
    pytest.param('step', 3, 3, marks=pytest.mark.slow),  # evaluated anyway
    ('step', 5, 5),  # nothing else happens
    # Of step 3: noticed after the next step.
    pytest.param('evaluation', 1, 4, marks=pytest.mark.slow),
    pytest.param('save', 2, 5, marks=pytest.mark.slow),  # of step 4
  ],
)
def test_a_stopped_run_goes_on_as_if_it_was_not(
  uninterrupted, tmp_path, where, at, step
):
  expected, config, state = uninterrupted
  place = {
    'step': signalled(step_lib, 'make_train_step', at),
    'evaluation': signalled(means, 'over_split', at),
    'save': signalled(checkpoint.Checkpoints, 'save', at, method=True),
  }[where]
  message = f'SIGTERM: saved step {step}; the same command goes on'
  with place, pytest.raises(Stopped, match=message):
    loop.train(config, tmp_path)
  assert max(row['step'] for row in metrics(tmp_path)) <= step
  assert not (tmp_path / 'result.json').exists()
  loop.train(config, tmp_path)
  assert metrics(tmp_path) == metrics(expected)
  assert saved(tmp_path, config) == state


@pytest.mark.slow
def test_a_signal_at_the_last_step_is_no_stop(uninterrupted, tmp_path):
  expected, config, _ = uninterrupted
  with signalled(step_lib, 'make_train_step', config.steps):
    result = loop.train(config, tmp_path)
  assert result['accuracy'] >= 0
  assert (tmp_path / 'result.json').exists()
  assert metrics(tmp_path) == metrics(expected)


@pytest.mark.slow
def test_a_crash_loses_only_what_came_after_the_last_save(
  uninterrupted, tmp_path, monkeypatch
):
  expected, config, state = uninterrupted
  original, calls = step_lib.make_train_step, 0

  def make(experiment):
    step = original(experiment)

    def crash(*args):
      nonlocal calls
      calls += 1
      if calls == 6:
        raise RuntimeError('crash')
      return step(*args)

    crash.trace = step.trace
    return crash

  monkeypatch.setattr(step_lib, 'make_train_step', make)
  with pytest.raises(RuntimeError, match='crash'):
    loop.train(config, tmp_path)
  with (tmp_path / 'metrics.jsonl').open('a') as f:
    f.write('{"step": 5, "loss": 1.0}\n{"step": 7, "los')  # a torn line
  loop.train(config, tmp_path)
  assert metrics(tmp_path) == metrics(expected)
  assert saved(tmp_path, config) == state


def test_killed_between_the_last_save_and_the_result(uninterrupted, tmp_path):
  expected, config, _ = uninterrupted
  workdir = shutil.copytree(expected, tmp_path / 'run')
  (workdir / 'result.json').unlink()
  loop.train(config, workdir)
  assert metrics(workdir) == metrics(expected)
  old, new = (
    json.loads((path / 'result.json').read_text())
    for path in (expected, workdir)
  )
  for name in ('train', 'finished'):  # when, and how fast
    del old[name], new[name]
  assert new == old


@pytest.mark.slow
def test_a_run_goes_on_on_other_meshes(finished, tiny, tmp_path, request):
  """From 2x4 devices to 4x2 to one."""
  expected, config, _ = finished
  for mesh, at in (('data:2,expert:4', 3), ('data:4,expert:2', 2)):
    place = signalled(step_lib, 'make_train_step', at)
    with place, pytest.raises(Stopped):
      loop.train(tiny(mesh=mesh), tmp_path)
  request.getfixturevalue('one_device')
  loop.train(config, tmp_path)
  for row, want in zip(metrics(tmp_path), metrics(expected), strict=True):
    assert row == pytest.approx(want, rel=1e-4)
