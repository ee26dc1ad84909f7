"""The optimizer, by name, with weight decay by parameter path."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from softmoe.config import OptimizerConfig
from softmoe.errors import UserError
from softmoe.optim import shares as shares_lib

Params = Any  # nested dicts of arrays; keys are str or int

_DECAY_FIELD = 'config.optimizer.weight_decay'


def make_optimizer(
  config: OptimizerConfig,
  schedule: optax.Schedule,
  params: Params,
  shares: Params | None = None,
  take: Callable[[Params], Params] = lambda rates: rates,
) -> optax.GradientTransformation:
  """Returns the gradient transformation that `config` asks for.

  Global-norm clipping, then the optimizer's own scaling, then decoupled weight
  decay, then the negative learning rate (so a decay of 0.1 takes 0.1 times the
  learning rate off a weight at each step). All of it is in float32, whatever
  the type of the parameters: in bfloat16 a decay such as 0.999 rounds to 1, so
  that a second moment would never fall.

  Args:
    config: the optimizer; `accumulate` is the business of the train step.
    schedule: learning rate at a step.
    params: without `scan`, or their shapes: only their paths are read.
    shares: of the learning rate, for each parameter; see `optim.shares`.
    take: from a tree like `params` to one like the parameters that are trained.

  Raises:
    UserError: an unknown name, or a decay rule that does not compile, applies
      to no parameter or stands beside 'adam'.
  """
  _check(config)
  rates = take(decay_rates(params, config.weight_decay))
  optimizer = optax.chain(
    _clip(config.clip_norm),
    _SCALINGS[config.name](config),
    _decay(rates) if config.weight_decay else optax.identity(),
    optax.scale_by_learning_rate(schedule),
  )
  if shares is not None:
    optimizer = shares_lib.shared(optimizer, shares)
  return in_float32(optimizer)


def in_float32(
  optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Returns `optimizer` with state, arithmetic and updates in float32."""

  def init(params):
    return optimizer.init(_float32(params))

  def update(updates, state, params=None):
    return optimizer.update(_float32(updates), state, _float32(params))

  return optax.GradientTransformation(init, update)


def _float32(tree: Params) -> Params:
  return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def decay_rates(params: Params, rules: tuple[tuple[str, float], ...]) -> Params:
  """Returns the weight decay of each parameter, as arrays without axes.

  Args:
    params: nested dicts, without `scan`; a path joins their keys by '/', for
      instance 'blocks/0/mlp/up/kernel'.
    rules: (regex, rate) pairs; the first that matches the whole path gives the
      rate, and a path that none matches is not decayed.

  Raises:
    UserError: a regex does not compile, or a rule applies to no parameter.
  """
  patterns = [_compile(*rule) for rule in rules]
  unused = set(range(len(rules)))

  def rate(path, _):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    for i, pattern in enumerate(patterns):
      if pattern.fullmatch(name):
        unused.discard(i)
        return np.asarray(rules[i][1], np.float32)
    return np.zeros((), np.float32)

  rates = jax.tree_util.tree_map_with_path(rate, params)
  if unused:
    regex = rules[min(unused)][0]
    raise UserError(_DECAY_FIELD, regex, _example(params))
  return rates


def _example(params: Params) -> str:
  path, _ = jax.tree_util.tree_flatten_with_path(params)[0][0]
  name = jax.tree_util.keystr(path, simple=True, separator='/')
  return (
    'it decides for no parameter; each regex must match at least one whole'
    f' path that no earlier one matches, for instance {name!r}'
  )


def _compile(regex: str, rate: float) -> re.Pattern:
  if rate < 0:
    raise UserError(_DECAY_FIELD, rate, 'a rate of 0 or more')
  try:
    return re.compile(regex)
  except re.error as e:
    raise UserError(_DECAY_FIELD, regex, f'a regular expression ({e})') from e


def _clip(norm: float) -> optax.GradientTransformation:
  return optax.clip_by_global_norm(norm) if norm else optax.identity()


def _decay(rates: Params) -> optax.GradientTransformation:
  def add(u: jax.Array, p: jax.Array, rate: np.ndarray) -> jax.Array:
    return u + shares_lib.times(p, rate) if np.any(rate) else u

  return optax.stateless(lambda u, p: jax.tree.map(add, u, p, rates))


def _adam(config: OptimizerConfig) -> optax.GradientTransformation:
  return optax.scale_by_adam(config.b1, config.b2, mu_dtype=jnp.float32)


def _adafactor(config: OptimizerConfig) -> optax.GradientTransformation:
  """Adafactor as Zhai et al. 2022 (https://arxiv.org/abs/2106.04560) use it.

  Against Shazeer & Stern 2018: a first moment, `b2` as a cap on the decay of
  the factored second moment, and no scaling by the size of the parameter.
  """

  def capped(step, exponent):
    return jnp.minimum(config.b2, 1 - (step + 1.0) ** -exponent)

  return optax.chain(
    optax.scale_by_factored_rms(
      min_dim_size_to_factor=32, decay_rate_fn=capped
    ),
    optax.ema(config.b1, debias=False, accumulator_dtype=jnp.float32),
  )


def _sgd(config: OptimizerConfig) -> optax.GradientTransformation:
  return optax.trace(config.momentum, accumulator_dtype=jnp.float32)


_SCALINGS = {
  'adam': _adam,
  'adamw': _adam,
  'adafactor': _adafactor,
  'sgd': _sgd,
}


def _check(config: OptimizerConfig) -> None:
  if config.name not in _SCALINGS:
    raise UserError(
      'config.optimizer.name', config.name, f'one of {sorted(_SCALINGS)}'
    )
  if config.name == 'adam' and config.weight_decay:
    raise UserError(
      _DECAY_FIELD, config.weight_decay, "empty for 'adam': decay needs 'adamw'"
    )
