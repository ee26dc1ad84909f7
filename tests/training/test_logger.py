"""What a run tells: one step late, at the due steps, and not after a NaN."""

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
def logger(tiny, tmp_path, monkeypatch):
  cost = flops.Cost(2.0, 2.0, 0.0, 1, True, ())
  monkeypatch.setattr(flops, 'forward', lambda *_, **__: cost)
  monkeypatch.setattr(peak, 'peak_flops', lambda mesh: 100.0)
  experiment = experiment_lib.build(tiny(log_every=3), jax.devices()[:1])
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
