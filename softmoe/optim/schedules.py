"""Learning rate as a function of the step, by name."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from softmoe.config import ScheduleConfig
from softmoe.errors import UserError

_FIELD = 'config.optimizer.schedule'


def make_schedule(
  config: ScheduleConfig, learning_rate: float, steps: int
) -> optax.Schedule:
  """Returns the learning rate at a step: warm-up, decay, cooldown.

  The rate grows linearly from 0 over the first `warmup` steps and, whatever
  the decay between, falls linearly to 0 over the last `cooldown` steps from
  the value at which the cooldown began.

  Args:
    config: the shape of the schedule; its lengths are in steps.
    learning_rate: the peak, reached at the end of the warm-up.
    steps: length of the whole run.

  Returns:
    A function from a step (int, or an int32 scalar array) to a rate.

  Raises:
    UserError: the name is unknown or the lengths do not fit into `steps`.
  """
  _check(config, steps)
  decay = _DECAYS[config.name](config, steps)

  def schedule(step: jax.typing.ArrayLike) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    held = jnp.clip(step, config.warmup, steps - config.cooldown)
    warmup = jnp.minimum(step / config.warmup, 1) if config.warmup else 1.0
    left = steps - step
    cooldown = (
      jnp.clip(left / config.cooldown, 0, 1) if config.cooldown else 1.0
    )
    return learning_rate * warmup * decay(held) * cooldown

  return schedule


def _rsqrt(config: ScheduleConfig, steps: int) -> Callable:
  del steps
  return lambda t: jax.lax.rsqrt(1 + (t - config.warmup) / config.timescale)


def _cosine(config: ScheduleConfig, steps: int) -> Callable:
  length = max(steps - config.warmup, 1)
  return lambda t: 0.5 + 0.5 * jnp.cos(jnp.pi * (t - config.warmup) / length)


def _constant(config: ScheduleConfig, steps: int) -> Callable:
  del config, steps
  return jnp.ones_like


_DECAYS = {'rsqrt': _rsqrt, 'cosine': _cosine, 'constant': _constant}


def _check(config: ScheduleConfig, steps: int) -> None:
  if config.name not in _DECAYS:
    raise UserError(f'{_FIELD}.name', config.name, f'one of {sorted(_DECAYS)}')
  if config.warmup + config.cooldown > steps:
    given = f'warmup {config.warmup}, cooldown {config.cooldown}'
    raise UserError(_FIELD, given, f'together at most config.steps = {steps}')
