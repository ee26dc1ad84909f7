"""A second task works everywhere without a change outside of its file."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from softmoe import experiment as experiment_lib
from softmoe.data import prefetch
from softmoe.evaluation import run
from softmoe.plan import estimate, report, targets
from softmoe.runs import state as state_lib
from softmoe.runs import workdir as workdir_lib
from softmoe.training import loop
from softmoe.training import step as step_lib
from tests.tasks import ragged

STEPS = 4


def config_of(**changes):
  optimizer = changes.pop('optimizer', {})
  config = dataclasses.replace(ragged.Config(), **changes)
  optimizer = dataclasses.replace(config.optimizer, **optimizer)
  return dataclasses.replace(config, optimizer=optimizer)


def curve(mesh, parts, devices):
  config = config_of(mesh=mesh, optimizer={'accumulate': parts})
  experiment = experiment_lib.build(config, jax.devices()[:devices])
  step = step_lib.make_train_step(experiment)
  rows = prefetch.local_rows(experiment.mesh, config.data.batch_size)
  batches = experiment.task.train_batches(rows)
  placed = prefetch.to_devices(batches, experiment.mesh, 0)
  state, metrics = state_lib.init(experiment), []
  for _ in range(STEPS):
    state, values = step(state, next(placed))
    metrics.append({name: float(v) for name, v in values.items()})
  return metrics


@pytest.fixture(scope='module')
def alone():
  """Returns the curve of one device and one batch."""
  return curve('data:1', 1, 1)


@pytest.mark.parametrize(
  ('mesh', 'parts', 'devices'),
  [
    ('data:1', 2, 1),
    pytest.param('data:2,expert:4', 2, 8, marks=pytest.mark.slow),
    pytest.param('data:2,expert:4', 1, 8, marks=pytest.mark.slow),
    pytest.param('expert:8', 1, 8, marks=pytest.mark.slow),
    pytest.param('expert:8', 2, 8, marks=pytest.mark.slow),
  ],
)
def test_parts_that_hold_unequal_shares_add_up(alone, mesh, parts, devices):
  """The task's loss, those of the router, and every metric."""
  found = curve(mesh, parts, devices)
  # Dropless experts fill their rows up, and do so once for each part.
  for name in set(alone[0]) - {'moe/executed', 'moe/flops'}:
    np.testing.assert_allclose(
      [m[name] for m in found],
      [m[name] for m in alone],
      rtol=2e-5,
      err_msg=name,
    )
  assert alone[-1]['parameter_norm'] != alone[0]['parameter_norm']
  assert alone[0]['loss'] > alone[0]['error']  # the router's losses on top


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
  config = config_of(mesh='data:2,expert:4')
  whole = loop.train(config, tmp_path / 'whole')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(step_lib, 'make_train_step', failing_after(5))
    with pytest.raises(ZeroDivisionError):
      loop.train(config, tmp_path / 'stopped')
  resumed = loop.train(config, tmp_path / 'stopped')
  for name in ('loss', 'error', 'moe/wanted'):
    assert resumed[name] == whole[name]
  assert whole['examples'] == ragged.EXAMPLES - 3
  assert {'gflop_per_token', 'tokens_per_second'} <= {*whole, *whole['train']}
  # The run names the task: its directory is all that an evaluation needs.
  written = json.loads((tmp_path / 'whole' / 'config.json').read_text())
  assert written['task'] == 'tests.tasks.ragged:Regression'
  assert workdir_lib.read_config(tmp_path / 'whole') == config
  again = run.evaluate_workdir(tmp_path / 'whole', step='best')
  assert again['split'] == 'test' and again['error'] == again['loss']


def failing_after(steps):
  make = step_lib.make_train_step

  def made(experiment):
    step, done = make(experiment), []

    class Step:
      trace = staticmethod(step.trace)

      def __call__(self, state, batch):
        done.append(0)
        return step(state, batch) if len(done) <= steps else 1 / 0

    return Step()

  return made


@pytest.mark.slow
def test_it_is_planned():
  config = config_of(mesh='data:2,expert:4')
  target = targets.open_target('cpu:8')
  found = estimate.estimate(config, target)
  assert found['gflop_per_token'] > 0
  assert found['train']['batch_size'] == 16
  # Of its 8 experts two work for a token.
  experts = 8 * (2 * 16 * 32 + 16 + 32)
  assert found['active_parameters'] == found['parameters'] - 0.75 * experts
  table = report.table([found])
  assert '/ token' in table and 'image' not in table


def test_a_loss_that_is_no_sum_refuses_micro_batches(monkeypatch):
  monkeypatch.setattr(ragged.Regression, 'additive', False)
  with pytest.raises(ValueError, match='config.optimizer.accumulate: got 2; 1'):
    experiment_lib.build(config_of(optimizer={'accumulate': 2}))
