"""Checkpoints of a run: the only module that knows Orbax.

A train state is a nested pytree of arrays (dicts, tuples, dataclasses) with
the parameters under the key `params`. A checkpoint is a directory named by its
step. It holds the state whole, whatever mesh it was on, and can be read onto
any other mesh.
"""

import math
import os
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from softmoe.config import CheckpointConfig
from softmoe.errors import UserError

Tree = Any  # a nested pytree of arrays, or of jax.ShapeDtypeStruct


class Checkpoints:
  """The checkpoints of one run, saved in the background.

  All processes of a run call every method alike. As a context manager, it
  waits on leaving until the last save is on disk.
  """

  def __init__(self, directory: str | os.PathLike, config: CheckpointConfig):
    """Looks at what is there; makes the directory if there is none.

    Raises:
      UserError: a number in `config` is out of range.
    """
    _check(config)
    self._config = config
    self._directory = epath.Path(directory).expanduser().absolute()
    self._checkpointer = ocp.training.Checkpointer(
      self._directory, preservation_policy=_preservation(config)
    )

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def save(
    self,
    step: int,
    state: Tree,
    metrics: Mapping[str, Any] | None = None,
    force: bool = False,
  ) -> bool:
    """Starts to save `state` if `step` is due, and returns whether it did.

    The state is copied before this returns and may be donated at once; the
    rest happens in the background, after the save before it has ended. Once it
    is on disk, checkpoints that no rule keeps are deleted.

    Args:
      step: number of steps done; due if divisible by `config.every`. A step
        that is already there is not saved again.
      state: the train state.
      metrics: evaluation metrics of this very state, for the keep-best rule;
        None if it was not evaluated.
      force: whether to save even if the step is not due.
    """
    if not force and not self._due(step):
      return False
    if step in self.steps():
      return False
    if metrics is not None:
      metrics = {name: float(value) for name, value in metrics.items()}
    self._checkpointer.save_async(step, state, metrics=metrics, force=True)
    return True

  def restore(self, abstract_state: Tree, step: int | None = None) -> Tree:
    """Returns the state of a checkpoint.

    Args:
      abstract_state: the state as `jax.ShapeDtypeStruct`s whose shardings say
        where each array goes.
      step: which checkpoint; None: the latest.

    Raises:
      UserError: there is no such checkpoint, or it is of another model.
    """
    path = self._existing(step)
    _compare(path, _saved(path), _describe(abstract_state))
    return ocp.load(path, abstract_state)

  def restore_params(
    self, abstract_params: Tree, step: int | None = None, key: str = 'params'
  ) -> Tree:
    """Returns one branch of a state, by default its parameters, alone.

    Args:
      abstract_params: as in `restore`, for that branch.
      step: which checkpoint; None: the latest.
      key: name of the branch, for instance that of averaged parameters.

    Raises:
      UserError: there is no such checkpoint, or it is of another model.
    """
    path = self._existing(step)
    wanted: Any = {key: abstract_params}
    saved = {k: v for k, v in _saved(path).items() if k.split('/')[0] == key}
    _compare(path, saved, _describe(wanted))
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
      restored: Any = ocp.load(path, wanted)
    return restored[key]

  def steps(self) -> list[int]:
    """Returns the steps of all checkpoints, in ascending order."""
    return [c.step for c in self._checkpointer.checkpoints]

  def latest(self) -> int | None:
    """Returns the last step that was saved, None if none was."""
    return max(self.steps(), default=None)

  def best(self) -> int | None:
    """Returns the step with the best metric, None if none was evaluated.

    The highest `config.best_metric` is best; the lowest, if it is a loss. Of
    equals, the later.
    """
    checkpoints = self._checkpointer.checkpoints
    rated = [(_rating(self._config, c.metrics), c.step) for c in checkpoints]
    rating, step = max(rated, default=(-math.inf, 0))
    return step if rating > -math.inf else None

  def wait(self) -> None:
    """Blocks until the save in progress, if any, is on disk."""
    self._checkpointer.wait()

  def close(self) -> None:
    """Waits for the save in progress and frees the background threads."""
    self._checkpointer.close()

  def _due(self, step: int) -> bool:
    return bool(self._config.every) and step % self._config.every == 0

  def _existing(self, step: int | None) -> epath.Path:
    self.wait()
    steps = self.steps()
    if not steps:
      raise UserError(str(self._directory), step, 'it holds no checkpoint yet')
    if step is not None and step not in steps:
      raise UserError('step', step, f'one of {steps} in {self._directory}')
    return self._directory / str(steps[-1] if step is None else step)


def _rating(config: CheckpointConfig, metrics: Any) -> float:
  """Returns how good a checkpoint is: higher is better, -inf is unknown."""
  value = (metrics or {}).get(config.best_metric, math.nan)
  if math.isnan(value):
    return -math.inf
  return -value if 'loss' in config.best_metric else value


def _preservation(config: CheckpointConfig) -> Any:
  policies = ocp.training.preservation_policies
  return policies.AnyPreservationPolicy(
    [
      policies.LatestN(config.keep_last),
      *([policies.EveryNSteps(config.keep_every)] if config.keep_every else []),
      policies.BestN(
        n=config.keep_best,
        get_metric_fn=lambda metrics: _rating(config, metrics),
        keep_checkpoints_without_metrics=False,
      ),
    ]
  )


def _check(config: CheckpointConfig) -> None:
  lowest = {'every': 0, 'keep_last': 1, 'keep_every': 0, 'keep_best': 0}
  for name, minimum in lowest.items():
    value = getattr(config, name)
    if value < minimum:
      raise UserError(f'config.checkpoint.{name}', value, f'{minimum} or more')


def _saved(path: epath.Path) -> dict[str, str]:
  metadata = ocp.metadata(path).metadata
  if metadata is None:
    raise ValueError('its metadata is damaged')
  return _describe(metadata)


def _describe(tree: Tree) -> dict[str, str]:
  """Returns path -> type and shape, such as 'float32[384,10]', of each leaf."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): (
      f'{leaf.dtype}[{",".join(map(str, leaf.shape))}]'
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _compare(
  path: epath.Path, saved: dict[str, str], wanted: dict[str, str]
) -> None:
  """Raises if the saved leaves are not those that are wanted."""
  for name in [*wanted, *saved]:
    there, here = saved.get(name, 'nothing'), wanted.get(name, 'nothing')
    if there != here:
      raise UserError(
        f'checkpoint {path}',
        f'{there} at {name}',
        f'this config has {here} there: it is of another model or optimizer',
      )
