"""What a run tells: one step late, at the due steps, and not after a NaN."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from softmoe import experiment as experiment_lib
from softmoe.costs import flops, peak
from softmoe.errors import Diverged
from softmoe.training import logger as logger_lib

FINE = dict(
  loss=1.0,
  accuracy=0.5,
  learning_rate=0.1,
  gradient_norm=1.0,
  parameter_norm=1.0,
)


def metrics(**changes):
  return {k: jnp.float32(v) for k, v in (FINE | changes).items()}


def steps(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line)['step'] for line in lines]


@pytest.fixture
def experiment(tiny, monkeypatch):
  cost = flops.Cost(2.0, 2.0, 0.0, 1, True, ())
  monkeypatch.setattr(flops, 'forward', lambda *_, **__: cost)
  monkeypatch.setattr(peak, 'peak_flops', lambda mesh: 100.0)
  return experiment_lib.build(tiny(log_every=3), jax.devices()[:1])


@pytest.fixture
def logger(experiment, tmp_path):
  with logger_lib.Logger(experiment, tmp_path, 0) as logger:
    yield logger


def test_a_step_is_told_when_the_next_one_is_on_its_way(logger, tmp_path):
  logger.step(1, metrics())
  assert steps(tmp_path) == []
  logger.step(2, metrics())
  assert steps(tmp_path) == [1]


def test_flush_tells_the_last_step_once(logger, tmp_path):
  logger.step(1, metrics())
  logger.flush()
  logger.flush()
  assert steps(tmp_path) == [1]


def test_first_last_and_every_third_step_are_told(logger, tmp_path):
  for step in range(1, 9):
    logger.step(step, metrics())
  logger.flush()
  assert steps(tmp_path) == [1, 3, 6, 8]


@pytest.mark.parametrize('name', ['loss', 'gradient_norm', 'parameter_norm'])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_run_that_diverged_ends_at_any_step(logger, tmp_path, name, value):
  logger.step(2, metrics(**{name: value}))
  with pytest.raises(Diverged, match=f'{name} at step 2 is {value}'):
    logger.flush()
  assert steps(tmp_path) == []


def test_metrics_of_checkpoints_that_are_gone_are_set_aside(
  experiment, tmp_path, capsys
):
  held = b'{"step": 1, "loss": 1.0}\n'
  (tmp_path / 'metrics.jsonl').write_bytes(held)
  with logger_lib.Logger(experiment, tmp_path, 0):
    pass
  assert (tmp_path / 'metrics.jsonl.old').read_bytes() == held
  assert steps(tmp_path) == []
  assert 'metrics.jsonl held is now metrics.jsonl.old\n' in (
    capsys.readouterr().err
  )
  with logger_lib.Logger(experiment, tmp_path, 0):
    pass
  names = {path.name for path in tmp_path.glob('metrics*')}
  assert names == {'metrics.jsonl', 'metrics.jsonl.old'}
  assert 'warning' not in capsys.readouterr().err


def test_speed_is_images_and_share_of_the_peak(logger, monkeypatch):
  assert logger.speed() == {}
  seconds = iter([10.0, 18.0])
  monkeypatch.setattr('time.perf_counter', lambda: next(seconds))
  for step in (1, 3):  # the clock starts at step 1: two steps of 16 images
    logger.step(step, metrics())
    logger.flush()
  rate = 2 * 16 / 8
  assert logger.speed() == {
    'images_per_second': rate,
    'mfu': 3 * 2.0 * rate / 100.0,
  }


@pytest.mark.parametrize('frozen', [True, False])
def test_what_is_frozen_has_no_share_of_the_peak(experiment, tmp_path, frozen):
  """Its backward pass is not all of the two that a step counts."""
  tree = {'head': False, 'patches': frozen}
  experiment = dataclasses.replace(experiment, frozen=tree)
  with logger_lib.Logger(experiment, tmp_path, 0) as logger:
    for step in (1, 3):
      logger.step(step, metrics())
      logger.flush()
    assert ('mfu' in logger.speed()) == (not frozen)
