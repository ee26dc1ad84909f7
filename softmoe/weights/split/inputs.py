"""What enters each MLP of a model, on a little data.

Axes: `b` examples, `m` tokens of an example, `n` tokens, `d` width.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from softmoe import experiment as experiment_lib
from softmoe.data import prefetch
from softmoe.data.text.config import TextDataConfig
from softmoe.tasks import examples
from softmoe.tasks import task as task_lib


class _Seen(list):
  """A list that is compared by identity, as a module's constants must be."""

  __hash__ = object.__hash__  # pyrefly: ignore
  __eq__ = object.__eq__  # pyrefly: ignore


class _Recorded(nnx.Module):
  """An MLP that keeps what it is given."""

  def __init__(self, mlp: Any, seen: _Seen):
    self.mlp, self._seen = mlp, seen

  def __call__(self, x: Float[Array, '*b d']) -> Float[Array, '*b d']:
    self._seen.append(x)
    return self.mlp(x)


def of_mlps(
  experiment: experiment_lib.Experiment,
  params: task_lib.Params,
  num_tokens: int,
) -> list[Float[np.ndarray, 'n d']]:
  """Returns tokens from all over the train split as the MLPs see them.

  Args:
    experiment: whose blocks are neither scanned nor computed again.
    params: of its model.
    num_tokens: the most; there may be fewer.
  """

  @jax.jit
  def see(params: task_lib.Params, batch: task_lib.Batch) -> list[Array]:
    model = nnx.merge(experiment.graphdef, params)
    seen = [_Seen() for _ in model.blocks]
    for block, kept in zip(model.blocks, seen, strict=True):
      block.mlp = _Recorded(block.mlp, kept)
    experiment.task.loss(model, experiment.task.prepare(batch, None))
    return [x for (x,) in seen]

  one = experiment.abstract_batch(experiment.mesh.size)
  length = jax.eval_shape(see, params, one)[0].shape[1]
  parts = []
  for batch in _batches(experiment, -(-num_tokens // length)):
    seen = jax.device_get(see(params, batch))
    real = _real(jax.device_get(batch), seen[0].shape[:2])
    parts.append([x[real].astype(np.float32) for x in seen])
  return [np.concatenate(x)[:num_tokens] for x in zip(*parts, strict=True)]


def _batches(
  experiment: experiment_lib.Experiment, count: int
) -> Iterator[dict[str, jax.Array]]:
  """Returns so many examples of the train split, and padding."""
  config: Any = experiment.config
  data, devices = config.data, experiment.mesh.size
  size = devices * -(-min(count, data.eval_batch_size) // devices)
  if isinstance(data, TextDataConfig):  # no token in two windows
    data = dataclasses.replace(data, stride=0)
  task = type(experiment.task)(dataclasses.replace(config, data=data))
  found = examples.read(task, data.train_split, count)
  return prefetch.to_devices(examples.cut(found, size), experiment.mesh, 0)


def _real(
  batch: dict[str, np.ndarray], shape: tuple[int, ...]
) -> Bool[np.ndarray, 'b m']:
  """Tells which tokens are no padding; text has some within an example too."""
  real = np.broadcast_to(batch['mask'][:, None] > 0, shape)
  return real & (batch['segments'] > 0) if 'segments' in batch else real
