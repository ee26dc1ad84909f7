"""Learning-rate schedules against evaluated figures of the paper's recipe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softmoe.config import ScheduleConfig
from softmoe.errors import UserError
from softmoe.optim import schedules

PAPER = ScheduleConfig(
  'rsqrt', warmup=10_000, timescale=10_000, cooldown=50_000
)


@pytest.mark.parametrize(
  ('steps', 'step', 'expected'),
  [
    (4_000_000, 0, 0.0),
    (4_000_000, 2_500, 2.5e-4),
    (4_000_000, 10_000, 1e-3),
    (4_000_000, 20_000, 1e-3 / 2**0.5),
    (4_000_000, 1_000_000, 1e-4),
    (4_000_000, 3_950_000, 1e-3 / 395**0.5),  # 5.03e-5
    (4_000_000, 3_975_000, 0.5e-3 / 395**0.5),  # half of the held value
    (4_000_000, 4_000_000, 0.0),
    (300_000, 250_000, 2e-4),
  ],
)
def test_rsqrt_is_the_papers(steps, step, expected):
  schedule = schedules.make_schedule(PAPER, 1e-3, steps)
  np.testing.assert_allclose(schedule(step), expected, rtol=1e-6)


def test_cooldown_starts_from_the_held_value():
  """A running decay would be below the straight line between its ends."""
  config = ScheduleConfig('rsqrt', warmup=10, timescale=10, cooldown=100)
  schedule = schedules.make_schedule(config, 1.0, 200)
  rates = np.array([schedule(t) for t in range(100, 201)])
  np.testing.assert_allclose(rates, np.linspace(10**-0.5, 0, 101), atol=1e-7)


def test_cosine():
  config = ScheduleConfig('cosine', warmup=100)
  schedule = schedules.make_schedule(config, 2.0, 500)
  rates = [schedule(t) for t in (0, 50, 100, 200, 300, 500)]
  expected = [0, 1, 2, 1 + 0.5**0.5, 1, 0]
  np.testing.assert_allclose(rates, expected, atol=1e-6)


def test_constant():
  config = ScheduleConfig('constant', warmup=4, cooldown=2)
  schedule = schedules.make_schedule(config, 1.0, 10)
  rates = [schedule(t) for t in (0, 1, 4, 7, 8, 9, 10)]
  np.testing.assert_allclose(rates, [0, 0.25, 1, 1, 1, 0.5, 0])


@pytest.mark.parametrize('name', ['rsqrt', 'cosine', 'constant'])
def test_without_warmup_starts_at_the_peak(name):
  schedule = schedules.make_schedule(ScheduleConfig(name), 0.3, 10)
  np.testing.assert_allclose(schedule(0), 0.3, rtol=1e-6)


def test_works_on_a_traced_step():
  schedule = schedules.make_schedule(PAPER, 1e-3, 300_000)
  rate = jax.jit(schedule)(jnp.int32(250_000))
  assert rate.dtype == jnp.float32
  np.testing.assert_allclose(rate, 2e-4, rtol=1e-6)


@pytest.mark.parametrize(
  ('config', 'field'),
  [
    (ScheduleConfig('linear'), 'config.optimizer.schedule.name'),
    (ScheduleConfig(warmup=6, cooldown=5), 'config.optimizer.schedule'),
  ],
)
def test_bad_input_names_the_field(config, field):
  with pytest.raises(UserError) as error:
    schedules.make_schedule(config, 1e-3, 10)
  assert error.value.field == field
