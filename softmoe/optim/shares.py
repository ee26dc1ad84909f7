"""The share of the learning rate that each parameter gets in fine-tuning.

Layer-wise decay: the rate falls by a factor from each block to the one before
it, so that what is general changes least (Clark et al., 2020,
https://arxiv.org/abs/2003.10555; for ViTs Bao et al., 2021,
https://arxiv.org/abs/2106.08254). A frozen parameter has the share 0.
"""

import re
from typing import Any

import jax
import numpy as np
import optax
from flax import traverse_util
from jaxtyping import Array, Float

from softmoe.config import OptimizerConfig
from softmoe.errors import UserError

Params = Any  # nested dicts of arrays; keys are str or int

_FROZEN = 'config.optimizer.frozen'
# What comes before the blocks, but for a head that is not the embedding.
_FIRST = re.compile('(patches|positions|source|target|vocabulary(?!/head))/.*')


def of_params(config: OptimizerConfig, params: Params) -> Params:
  """Returns the share of each parameter, as arrays without axes.

  Args:
    config: of the optimizer.
    params: without `scan`; only their paths are read.

  Raises:
    UserError: a regex matches no parameter, or all are frozen, or there are no
      blocks for a decay.
  """
  paths = {k: '/'.join(map(str, k)) for k in traverse_util.flatten_dict(params)}
  frozen = _frozen(config.frozen, list(paths.values()))
  depths = _depths(config.layer_decay, list(paths))
  below = {k: _below(k, path, depths) for k, path in paths.items()}
  share = lambda k: config.layer_decay ** below[k] * (paths[k] not in frozen)
  return traverse_util.unflatten_dict(
    {k: np.asarray(share(k), np.float32) for k in paths}
  )


def shared(
  optimizer: optax.GradientTransformation, shares: Params
) -> optax.GradientTransformation:
  """Returns `optimizer` with its updates times the shares, decay included.

  A frozen parameter's gradient counts in no norm.

  Args:
    optimizer: any whose updates are proportional to the learning rate.
    shares: of each parameter a number, or one for each block of a `scan`.
  """

  def update(updates, state, params=None):
    some = jax.tree.map(lambda share: np.asarray(share > 0, np.float32), shares)
    updates = jax.tree.map(times, updates, some)
    updates, state = optimizer.update(updates, state, params)
    return jax.tree.map(times, updates, shares), state

  return optax.GradientTransformation(optimizer.init, update)


def times(
  w: Float[Array, '*n'], share: Float[np.ndarray, '...']
) -> Float[Array, '*n']:
  """Returns w times a number, or one for each block of a `scan`."""
  return w * share.reshape((*share.shape, *(1,) * (w.ndim - share.ndim)))


def _frozen(patterns: tuple[str, ...], paths: list[str]) -> set[str]:
  """Returns the paths that a pattern matches as a whole."""
  found = {pattern: _matches(pattern, paths) for pattern in patterns}
  for pattern, matched in found.items():
    if not matched:
      expected = f'a regex of whole paths, for instance {paths[0]!r}'
      raise UserError(_FROZEN, pattern, expected)
  frozen = set().union(*found.values())
  if len(frozen) == len(paths):
    raise UserError(_FROZEN, patterns, 'patterns that leave something to train')
  return frozen


def _matches(pattern: str, paths: list[str]) -> set[str]:
  try:
    return {path for path in paths if re.fullmatch(pattern, path)}
  except re.error as e:
    raise UserError(_FROZEN, pattern, f'a regular expression ({e})') from e


def _depths(decay: float, paths: list[tuple]) -> dict[str, int]:
  """Returns how many blocks each stack has, by its name."""
  depths: dict[str, int] = {}
  for name, *rest in paths:
    if rest and isinstance(rest[0], int):
      depths[name] = max(depths.get(name, 0), rest[0] + 1)
  if decay < 1 and not depths:
    expected = '1: this model has no stack of blocks'
    raise UserError('config.optimizer.layer_decay', decay, expected)
  return depths


def _below(key: tuple, path: str, depths: dict[str, int]) -> int:
  """Returns how many layers a parameter is below the head."""
  if key[0] in depths:
    return depths[key[0]] - key[1]
  return max(depths.values(), default=0) + 1 if _FIRST.fullmatch(path) else 0
